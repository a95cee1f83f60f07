"""Show the orders that could not be billed, and why.  This program has no event loop."""

from events_core.sync import create_client


def main() -> None:
    with create_client("letters", file="events.toml") as client, client.subscribe() as receiver:
        while letter := receiver.receive_message(timeout=5):
            reason = letter.attributes.get("dead_letter_reason", "it failed too often")
            print("order", letter.data_as_json()["order"], "was not billed:", reason)
            receiver.acknowledge(letter)


if __name__ == "__main__":
    main()
