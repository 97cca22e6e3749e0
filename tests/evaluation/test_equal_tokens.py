from stagebeam.evaluation.equal_tokens import rivals


def rival(tokens: dict[str, float], first: str, method: str) -> str:
    return {(a, m): b for a, m, b in rivals(tokens)}[first, method]


def test_the_other_stands_at_its_cheapest_n_that_was_given_no_less():
    tokens = {"majority@2": 20.0, "majority@4": 40.0, "majority@8": 80.0, "stage_beam@2": 25.0}
    assert rival(tokens, "stage_beam@2", "majority") == "majority@4"
    assert rival({**tokens, "stage_beam@2": 40.0}, "stage_beam@2", "majority") == "majority@4"


def test_where_every_n_is_cheaper_the_dearest_is_named():
    tokens = {"majority@2": 20.0, "majority@4": 40.0, "stage_beam@2": 41.0}
    assert rival(tokens, "stage_beam@2", "majority") == "majority@4"


def test_every_point_meets_every_other_method_and_never_its_own():
    tokens = {f"{m}@{n}": float(n) for m in ("majority", "best_of_n", "retrace") for n in (2, 4)}
    found = rivals(tokens)
    assert len(found) == 6 * 2
    for first, method, second in found:
        assert second.partition("@")[0] == method != first.partition("@")[0]


def test_order_of_cost_decides_and_not_order_of_n():
    tokens = {"majority@2": 90.0, "majority@4": 50.0, "stage_beam@2": 45.0}  # early stopping
    assert rival(tokens, "stage_beam@2", "majority") == "majority@4"
