"""Faults: the details survive the way through gRPC's trailing metadata."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from sandboxd.supervisor import faults

ALL = [
    kind
    for kind in vars(faults).values()
    if isinstance(kind, type) and issubclass(kind, faults.Fault) and kind is not faults.Fault
]
# Beyond gRPC's soft limit of 8 KiB a peer refuses trailing metadata at random, and the typed
# refusal with it.
SOFT_METADATA_BYTES = 8 * 1024


def unpack(fault: faults.Fault) -> tuple[status_pb2.Status, dict[str, object]]:
    status = status_pb2.Status.FromString(fault.details())
    found: dict[str, object] = {}
    for detail in status.details:
        kind = getattr(error_details_pb2, detail.TypeName().rpartition(".")[2])
        message = kind()
        assert detail.Unpack(message)
        found[detail.TypeName().rpartition(".")[2]] = message
    return status, found


@pytest.mark.parametrize("kind", ALL, ids=lambda kind: kind.__name__)
@given(message=st.text(max_size=100), field=st.text(max_size=20), value=st.text(max_size=20))
def test_every_fault_tells_its_reason_message_and_metadata(
    kind: type[faults.Fault], message: str, field: str, value: str
) -> None:
    status, details = unpack(kind(message, field=field, metadata={"what": value}))
    assert status.code == kind.status.value[0]
    assert status.message == message
    info = details["ErrorInfo"]
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (kind.reason, "sandboxd")
    assert dict(info.metadata) == {"what": value}
    assert ("BadRequest" in details) == (kind.status is grpc.StatusCode.INVALID_ARGUMENT)
    if "BadRequest" in details:
        request = details["BadRequest"]
        assert isinstance(request, error_details_pb2.BadRequest)
        (violation,) = request.field_violations
        assert (violation.field, violation.description) == (field, message)
    assert "RetryInfo" not in details


long_texts = st.builds(
    lambda char, count: char * count,
    st.sampled_from(["x", "\n", "ä", "\U0001f4a5"]),
    st.integers(0, 20_000),
)


@given(
    long_texts,
    long_texts,
    st.dictionaries(st.sampled_from(["layers", "digest", "maximum", "actual"]), long_texts),
)
def test_whatever_a_fault_quotes_its_details_fit_trailing_metadata(
    message: str, field: str, metadata: dict[str, str]
) -> None:
    fault = faults.InvalidRequest(message, field=field, metadata=metadata, retry_after_s=1.0)
    percent_encoded = 3 * len(fault.message.encode())
    base64 = len(fault.details()) * 4 // 3
    assert percent_encoded + base64 < SOFT_METADATA_BYTES
    assert fault.metadata.keys() == metadata.keys()
    for name, value in fault.metadata.items():
        assert value == metadata[name] or value.endswith("...")


@given(st.floats(0.001, 1e6))
def test_a_retryable_fault_tells_when_to_retry(after_s: float) -> None:
    _, details = unpack(faults.QueueFull("full", retry_after_s=after_s))
    retry = details["RetryInfo"]
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert abs(retry.retry_delay.ToMilliseconds() - after_s * 1000) <= 1


def test_reasons_are_unique_and_never_internal() -> None:
    assert len({kind.reason for kind in ALL}) == len(ALL)
    assert not {kind.status for kind in ALL} & {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@pytest.mark.parametrize("char", ["x", "\n", "%", "ä", "\U0001f4a5", "\0"])
def test_the_longest_message_fits_trailing_metadata(char: str) -> None:
    fault = faults.InvalidModule(char * 100_000, field="wasm", metadata={"offset_bytes": "9" * 20})
    percent_encoded = 3 * len(fault.message.encode())
    base64 = len(fault.details()) * 4 // 3
    assert percent_encoded + base64 < SOFT_METADATA_BYTES
    assert fault.message.startswith(char * 100)
