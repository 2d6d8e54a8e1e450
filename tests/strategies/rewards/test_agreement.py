from abduce.serving.flow import Failure
from abduce.strategies.rewards.agreement import Agreement


def test_the_share_that_agrees(sent, solved, policy):
    texts = ["so 56", "7 x 8 = 56.0", "it is 54", "$56"]
    batches, scores = sent(Agreement(policy=policy).score([solved(text) for text in texts]))
    assert batches == []
    assert scores == [0.75, 0.75, 0.25, 0.75]


def test_no_answer_agrees_with_nobody(sent, solved, policy):
    _, scores = sent(Agreement(policy=policy).score([solved("who knows"), solved("no idea"), solved("56")]))
    assert scores == [0.0, 0.0, 1.0]


def test_partial_solutions_have_no_answer_to_agree_on(sent, solved, policy):
    _, scores = sent(Agreement(policy=policy).score([solved("56"), solved("7 x 8 is", last=False)]))
    assert scores[0] == 1.0
    assert isinstance(scores[1], Failure) and "best_of_n" in scores[1].message


def test_order_does_not_matter(sent, solved, policy):
    states = [solved("56"), solved("54"), solved("so 56"), solved("none")]
    _, scores = sent(Agreement(policy=policy).score(states))
    _, again = sent(Agreement(policy=policy).score(states[::-1]))
    assert again == scores[::-1]
