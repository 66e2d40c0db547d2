"""Histograms as Prometheus reads them."""

from __future__ import annotations

from lockgate.tunnel.figures import Calls, Histogram


def test_a_bucket_has_what_is_up_to_its_bound() -> None:
    histogram = Histogram((1, 10))
    for value in (0.5, 1, 2, 10, 11):
        histogram.observe(value)
    assert list(histogram.lines("x", 'a="b"')) == [
        'x_bucket{a="b",le="1"} 2',
        'x_bucket{a="b",le="10"} 4',
        'x_bucket{a="b",le="+Inf"} 5',
        'x_sum{a="b"} 24.5',
        'x_count{a="b"} 5',
    ]
    assert list(Histogram(()).lines("x")) == ['x_bucket{le="+Inf"} 0', "x_sum 0.0", "x_count 0"]


def test_a_call_that_failed_is_an_operation_as_well() -> None:
    calls = Calls()
    calls.count("register_connection", 0.1, failed=True)
    calls.count("register_connection", 0.2, failed=False)
    assert (calls.operations, calls.failures) == ({"register_connection": 2}, {"register_connection": 1})
