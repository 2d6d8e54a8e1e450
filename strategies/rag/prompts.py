"""What the readers are told. The paper's figures of its prompts could not be read: these are ours."""

from collections.abc import Sequence

from .documents import Document

READ = "Answer the question from the documents. Write the answer alone, as short as possible."
KNOW = "Answer the question. Write the answer alone, as short as possible."
ASK = (
    "Answer the last question from the documents, step by step. Each time write exactly one line:\n"
    "Follow up: <a simpler question that must be answered first>\n"
    "Intermediate answer: <the answer to the last follow up, as short as possible>\n"
    "So the final answer is: <the answer to the question, as short as possible>"
)
AGAIN = "Write one line that begins with one of: {prefixes}"
ANSWER = "Answer:"
NEXT = ("\nQuestion:", "\nDocuments:")  # how one begins that goes on with examples of its own


def block(documents: Sequence[Document], question: str, lines: Sequence[str]) -> str:
    """Documents, a question, and what was said to it, as far as there are any."""
    told = [f"Question: {question}", *lines]
    return "\n".join([listed(documents), "", *told] if documents else told)


def listed(documents: Sequence[Document]) -> str:
    """Documents, one a line."""
    return "\n".join(["Documents:", *(each.line() for each in documents)])
