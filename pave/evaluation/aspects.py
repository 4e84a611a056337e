"""What a language model is asked about answers, by aspect: the prompts of Video-ChatGPT, which the field uses.

In: one question or two, the right answer, and answers. Out: the messages of a request. Knows nothing of endpoints.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pave.endpoint.client import Messages

# Video-ChatGPT, quantitative_evaluation/evaluate_activitynet_qa.py and evaluate_benchmark_1 to 5 at 659e04b.
SYSTEM = (
    "You are an intelligent chatbot designed for evaluating the {of} of generative outputs for {pairs}. "
    "{more}Your task is to compare the predicted {what} and determine {whether}. Here's how you can accomplish the "
    "task:------##INSTRUCTIONS: {rules}"
)
USER = (
    "Please evaluate the following video-based question-answer pair:\n\n{asked}\n\n"
    "Provide your evaluation only as {form}DO NOT PROVIDE ANY OTHER OUTPUT TEXT OR EXPLANATION. "
    "Only provide the Python dictionary string. For example, your response should look like this: {example}"
)
ONE = "Question: {}\nCorrect Answer: {right}\nPredicted Answer: {}"
TWO = (
    "Question 1: {}\nQuestion 2: {}\nCorrect Answer: {right}\nPredicted Answer to Question 1: {}\n"
    "Predicted Answer to Question 2: {}"
)
SYNONYMS = "- Consider synonyms or paraphrases as valid matches.\n"


@dataclass(frozen=True)
class Aspect:
    """What a judge looks at: the slots of the two prompts."""

    of: str
    whether: str
    rules: str
    score: str
    best: str
    value: str = ""  # what the key `score` has
    pairs: str = "video-based question-answer pairs"
    more: str = ""  # of the task
    what: str = "answer with the correct answer"
    yes: bool = False  # it also says yes or no
    asked: str = ONE  # TWO: it compares the answers to two questions that have the same right one

    def messages(self, questions: Sequence[str], right: str, answers: Sequence[str]) -> Messages:
        """The two turns of a request about one question, or two."""
        slots = {"pairs": self.pairs, "more": self.more, "what": self.what, "whether": self.whether}
        system = SYSTEM.format(of=self.of, rules=self.rules, **slots)
        asked = self.asked.format(*questions, *answers, right=right)
        user = USER.format(form=self._form(), example=self._example(), asked=asked)
        return [{"role": "system", "content": system}, {"role": "user", "content": user}]

    def _form(self) -> str:
        if self.yes:
            return (
                "a yes/no and score where the score is an integer value between 0 and 5, with 5 indicating the "
                f"{self.best}. Please generate the response in the form of a Python dictionary string with keys 'pred' "
                "and 'score', where value of 'pred' is  a string of 'yes' or 'no' and value of 'score' is in INTEGER, "
                "not STRING."
            )
        return (
            f"a {self.score} where the {self.score} is an integer value between 0 and 5, with 5 indicating the "
            f"{self.best}. Please generate the response in the form of a Python dictionary string with keys 'score', "
            f"where its value is {self.value} in INTEGER, not STRING."
        )

    def _example(self) -> str:
        return "{'pred': 'yes', 'score': 4.8}." if self.yes else "{''score': 4.8}."


ASPECTS: Mapping[str, Aspect] = {
    "match": Aspect(
        of="correctness",
        pairs="question-answer pairs",
        whether="if they match meaningfully",
        rules="- Focus on the meaningful match between the predicted answer and the correct answer.\n"
        + SYNONYMS
        + "- Evaluate the correctness of the prediction compared to the answer.",
        score="score",
        best="highest meaningful match",
        yes=True,
    ),
    "correctness": Aspect(
        of="factual accuracy",
        whether="if they are factually consistent",
        rules="- Focus on the factual consistency between the predicted answer and the correct answer. The predicted "
        "answer should not contain any misinterpretations or misinformation.\n- The predicted answer must be factually "
        "accurate and align with the video content.\n"
        + SYNONYMS
        + "- Evaluate the factual accuracy of the prediction compared to the answer.",
        score="factual accuracy score",
        value="the factual accuracy score",
        best="highest level of factual consistency",
    ),
    "detail": Aspect(
        of="detail orientation",
        whether="its level of detail, considering both completeness and specificity",
        rules="- Check if the predicted answer covers all major points from the video. The response should not leave "
        "out any key aspects.\n- Evaluate whether the predicted answer includes specific details rather than just "
        "generic points. It should provide comprehensive information that is tied to specific elements of the video.\n"
        + SYNONYMS
        + "- Provide a single evaluation score that reflects the level of detail orientation of the prediction, "
        "considering both completeness and specificity.",
        score="detail orientation score",
        value="the detail orientation score",
        best="highest level of detail orientation",
    ),
    "context": Aspect(
        of="contextual understanding",
        whether="if the generated response aligns with the overall context of the video content",
        rules="- Evaluate whether the predicted answer aligns with the overall context of the video content. It should "
        "not provide information that is out of context or misaligned.\n- The predicted answer must capture the main "
        "themes and sentiments of the video.\n"
        + SYNONYMS
        + "- Provide your evaluation of the contextual understanding of the prediction compared to the answer.",
        score="contextual understanding score",
        value="contextual understanding score",
        best="highest level of contextual understanding",
    ),
    "temporal": Aspect(
        of="temporal understanding",
        whether="if they correctly reflect the temporal sequence of events in the video content",
        rules="- Focus on the temporal consistency between the predicted answer and the correct answer. The predicted "
        "answer should correctly reflect the sequence of events or details as they are presented in the video "
        "content.\n- Consider synonyms or paraphrases as valid matches, but only if the temporal order is maintained.\n"
        "- Evaluate the temporal accuracy of the prediction compared to the answer.",
        score="temporal accuracy score",
        value="the temporal accuracy score",
        best="highest level of temporal consistency",
    ),
    "consistency": Aspect(
        of="consistency",
        pairs="similar video-based question-answer pairs",
        more="You will be given two very similar questions, a common answer common to both the questions and predicted "
        "answers for the two questions .",
        what="answers for two very similar question, with a common correct answer",
        whether="if they are consistent",
        rules="- Focus on the consistency between the two predicted answers and the correct answer. Both predicted "
        "answers should correspond to the correct answer and to each other, and should not contain any contradictions "
        "or significant differences in the conveyed information.\n- Both predicted answers must be consistent with "
        "each other and the correct answer, in terms of the information they provide about the video content.\n"
        "- Consider synonyms or paraphrases as valid matches, but only if they maintain the consistency in the "
        "conveyed information.\n- Evaluate the consistency of the two predicted answers compared to the correct "
        "answer.",
        score="consistency score",
        value="the consistency score",
        best="highest level of consistency",
        asked=TWO,
    ),
}
