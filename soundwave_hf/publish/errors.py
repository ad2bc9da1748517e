"""Errors of the Hub in one sentence that says what to do."""

import json
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from ..secret_values import first_line


HTTP_ERROR = HfHubHTTPError.__bases__[0]  # base class of the errors of the HTTP client in use
ADVICE = {
    401: "The token is missing, wrong or expired: log in with `hf auth login`, or set the variable `HF_TOKEN`.",
    403: "This account may not write there: check `hf auth whoami`, the name, and that the token may write.",
    404: "There is no such repository or revision, or this account may not see it: check the name.",
    409: "Something of that name exists already: choose another name.",
    429: "The Hub limits the number of requests. Run the same command in some minutes; it continues where it stopped.",
}
OWN_FAULT = "The Hub has an internal error. Run the same command later; it continues where it stopped."
NO_ANSWER = (
    "Check the connection, `HF_ENDPOINT` and `HF_HUB_OFFLINE`, and run the same command again; it continues where it "
    "stopped."
)


@contextmanager
def hub_errors(repo: str) -> Iterator[None]:
    """Raises: `ConnectionError` with the first line of what the Hub says, and what to do."""
    try:
        yield
    except json.JSONDecodeError as error:
        raise ConnectionError(
            f"`{repo}` could not be pushed to the hub: the answer is not JSON, so the server is not a Hub. {NO_ANSWER}"
        ) from error
    except (HTTP_ERROR, OSError, RuntimeError) as error:
        cause = _cause(error)
        is_file = isinstance(cause, OSError) and cause.errno is not None and not isinstance(cause, ConnectionError)
        if is_file or not isinstance(cause, HTTP_ERROR | OSError):
            raise  # of this machine, not of the Hub
        raise ConnectionError(
            f"`{repo}` could not be pushed to the hub: {first_line(cause)}. {advice(cause)}"
        ) from error


def _cause(error: BaseException) -> BaseException:
    """The error of the Hub or the connection below those that wrap it."""
    while type(error) is RuntimeError and error.__cause__ is not None:
        error = error.__cause__
    return error


def advice(error: BaseException) -> str:
    """What to do."""
    if isinstance(error, LocalTokenNotFoundError):
        return ADVICE[401]
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status is None:
        return NO_ANSWER
    return ADVICE.get(status, OWN_FAULT if status >= 500 else "Check `hf auth whoami` and the name.")


__all__ = ["HTTP_ERROR", "hub_errors"]
