-- The indexes that every partition has from its first row (docs/adr/0012 has their cost); the others are built behind,
-- when a day is over (record.partitions). An index here is an index of every partition, present and future.

CREATE UNIQUE INDEX traffic_records_id          ON traffic_records (id);
CREATE INDEX        traffic_records_connection  ON traffic_records (connection_id);
CREATE INDEX        traffic_records_domain      ON traffic_records (domain, id);
CREATE INDEX        traffic_records_errors      ON traffic_records (status_code, id) WHERE status_code >= 400;
CREATE INDEX        traffic_records_timestamp   ON traffic_records USING brin (timestamp) WITH (pages_per_range = 32);

CREATE UNIQUE INDEX traffic_logs_id        ON traffic_logs (id);
CREATE INDEX        traffic_logs_domain    ON traffic_logs (domain, id);
CREATE INDEX        traffic_logs_source    ON traffic_logs (source_ip, id);
CREATE INDEX        traffic_logs_timestamp ON traffic_logs USING brin (timestamp) WITH (pages_per_range = 32);

CREATE UNIQUE INDEX bodies_hash ON bodies (hash, day);
