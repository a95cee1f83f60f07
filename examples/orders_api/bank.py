"""The bank, which is another company's server in real life."""


class BankClosed(Exception):
    """The bank is closed for a while."""


class CardRefused(Exception):
    """The bank refuses the card of a customer, and will do so again."""


async def charge(customer: str, cents: int) -> None:
    """Charge the card of *customer*."""
    if customer == "mallory":
        raise CardRefused("the card was stolen")
