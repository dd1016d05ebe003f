"""The one filter language: what ``q=`` means in the API, the command line, the live feed and rules.

A filter is read once (``parse``) into a frozen expression whose values are typed already; ``matcher`` turns it into a
predicate over records, ``to_sql`` into a parameterised condition over the tables. Both give the same answer for the
same data: ``tests/rules`` proves it against a real PostgreSQL. The grammar is in ``docs/filter-language.md``.
"""

from appliance.rules.filter.error import FilterError
from appliance.rules.filter.expression import EVERYTHING, Expression
from appliance.rules.filter.fields import CONNECTIONS, EXCHANGES, Field, Fields, Kind
from appliance.rules.filter.parser import parse
from appliance.rules.filter.predicate import matcher
from appliance.rules.filter.sql import Condition, to_sql
from appliance.rules.filter.window import Window, window_of

__all__ = [
    "CONNECTIONS",
    "EVERYTHING",
    "EXCHANGES",
    "Condition",
    "Expression",
    "Field",
    "Fields",
    "FilterError",
    "Kind",
    "Window",
    "matcher",
    "parse",
    "to_sql",
    "window_of",
]
