-- Connections (traffic_logs), exchanges (traffic_records), bodies, and how far each tap ring was read.
-- Ids are UUIDv7: a time window is an id window, and partitions are days of ids. Needs no extension.
-- Columns carry the names of the documents that the product was conceived in (timestamp, source_ip, request_data, …).

CREATE TABLE traffic_logs (
    id              uuid             NOT NULL,
    timestamp       timestamptz      NOT NULL,
    latency_ms      double precision,            -- time to reach the server; null when it was never dialed
    duration_ms     double precision,            -- null while the connection is open
    bytes_in        bigint           NOT NULL,   -- client to server
    bytes_out       bigint           NOT NULL,   -- server to client
    exchanges       integer          NOT NULL,
    source_port     integer          NOT NULL,
    dest_port       integer          NOT NULL,
    completeness    integer          NOT NULL,   -- 0 is complete, else bits of appliance.model.exchange.Missing
    missing_bytes   bigint           NOT NULL,
    source_ip       inet             NOT NULL,
    dest_ip         inet,
    domain          text,
    domain_source   text,
    protocol        text             NOT NULL,
    listener        text             NOT NULL,
    path            text             NOT NULL,
    detail          text,
    end_reason      text,
    error           text,
    user_name       text,
    tls             jsonb,
    tags            text[]
) PARTITION BY RANGE (id);

CREATE TABLE traffic_records (
    id                  uuid             NOT NULL,
    connection_id       uuid             NOT NULL,
    timestamp           timestamptz      NOT NULL,
    first_byte_ms       double precision,        -- start of request to first byte of response
    response_time_ms    double precision,        -- start of request to end of response
    request_bytes       bigint           NOT NULL,
    response_bytes      bigint           NOT NULL,
    source_port         integer          NOT NULL,
    destination_port    integer          NOT NULL,
    completeness        integer          NOT NULL,
    status_code         smallint         NOT NULL,  -- 0 where the protocol has no number
    payload_size_bucket smallint         NOT NULL,  -- 0 < 1 KiB, 1 < 64 KiB, 2 < 1 MiB, 3 larger
    source_addr         inet             NOT NULL,
    destination_addr    inet,
    protocol            text             NOT NULL,
    listener            text             NOT NULL,
    domain              text,
    method              text,
    request_path        text,                    -- the contract's `target`
    status              text,
    error               text,
    request_data        bytea,                   -- hash of the body in `bodies`, null when none was stored
    response_data       bytea,
    headers             bytea,                   -- both heads, redacted, packed (record.pack)
    metadata            jsonb,
    tags                text[]
) PARTITION BY RANGE (id);
ALTER TABLE traffic_records ALTER COLUMN headers SET STORAGE EXTERNAL;

CREATE TABLE bodies (
    hash            bytea    NOT NULL,           -- SHA-256 of the stored bytes, before compression
    day             date     NOT NULL,
    format          smallint NOT NULL,           -- 0 none, 1 lz4, 2 zstd
    size_original   bigint   NOT NULL,
    size_compressed bigint   NOT NULL,
    data            bytea    NOT NULL
) PARTITION BY LIST (day);
ALTER TABLE bodies ALTER COLUMN data SET STORAGE EXTERNAL;

CREATE TABLE ring_positions (
    ring     text        PRIMARY KEY,
    position bigint      NOT NULL,
    resume   bytea       NOT NULL,
    written  timestamptz NOT NULL DEFAULT now()
);
