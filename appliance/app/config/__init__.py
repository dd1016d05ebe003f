"""The configuration: read from everywhere, checked at once, one frozen document."""

from appliance.app.config.document import Document
from appliance.app.config.load import Loaded, load
from appliance.app.config.problems import Place, Problem

__all__ = ["Document", "Loaded", "Place", "Problem", "load"]
