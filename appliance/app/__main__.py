"""``python -m appliance.app`` is ``weir``."""

from appliance.app.cli import main

main()
