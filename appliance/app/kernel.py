"""The supervisor's hold on the kernel: interception by the document, put up last and taken away first."""

import asyncio
from typing import TYPE_CHECKING

from appliance.app import wiring
from appliance.app.config.document import Document
from appliance.app.errors import PrivilegeMissing
from appliance.app.privileges import CAP_NET_ADMIN, has_capability
from appliance.netfilter.errors import NetfilterError
from appliance.observe.logging import get_logger

if TYPE_CHECKING:
    from appliance.netfilter.interception import Interception

log = get_logger("kernel")

_RETRY = 2.0  # seconds


class Kernel:
    """Interception, if the document wants any."""

    def __init__(self, document: Document) -> None:
        """Raises ``PrivilegeMissing`` when something is wanted that we may not do, ``PolicyError`` for what cannot."""
        self._wanted = wiring.intercept(document) is not None
        self._interception: Interception | None = None
        if self._wanted and not has_capability(CAP_NET_ADMIN):
            raise PrivilegeMissing(
                "transparent interception changes the kernel's rules and needs CAP_NET_ADMIN: run as root "
                "(sudo weir run …), or choose proxy.mode socks or direct_http"
            )
        if self._wanted:
            # Imported only here: pyroute2 takes 0.2 s and 20 MB, and most who run without root do not need it.
            from appliance.netfilter import interception

            self._interception = interception.Interception(journal=wiring.Places(document.state_dir).switches)

    @property
    def wanted(self) -> bool:
        """Whether there is anything to intercept."""
        return self._wanted

    @property
    def in_place(self) -> bool:
        """Whether the kernel sends us connections now."""
        return self._interception is not None and self._interception.policy is not None

    async def up(self, document: Document) -> None:
        """Put the rules in place, or replace them without a gap. Raises ``NetfilterError``."""
        policy = wiring.intercept(document)
        if self._interception is None or policy is None:
            return
        if self._interception.policy is None:
            await self._interception.up(policy)
            log.info("interception is up", interfaces=list(policy.interfaces), ports=policy.ports)
        else:
            await self._interception.replace(policy)
            log.info("interception replaced", interfaces=list(policy.interfaces), ports=policy.ports)

    async def keep(self) -> None:
        """Put the routing back when another tool flushes it, until cancelled."""
        while self._interception is not None:
            try:
                await self._interception.keep()
            except NetfilterError as error:
                log.error("interception could not be put back; trying again", error=str(error))
                await asyncio.sleep(_RETRY)

    async def drain(self) -> None:
        """Take no new connections; those that relays have go on. What the kernel refuses is logged."""
        if self._interception is None:
            return
        try:
            await self._interception.drain()
        except NetfilterError as error:
            log.error("interception could not be reduced; taking it away", error=str(error))
            await self.down()

    async def down(self) -> None:
        """Take the rules away. What the kernel refuses is logged: we are on our way out."""
        if self._interception is None:
            return
        try:
            await self._interception.down()
        except NetfilterError as error:
            log.error("interception could not be taken away", error=str(error))
        finally:
            self._interception.close()
            self._interception = None
