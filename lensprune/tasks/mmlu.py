"""MMLU (Hendrycks et al. 2021): 57 subjects, four options."""

from __future__ import annotations

from dataclasses import dataclass

from lensprune.errors import unknown_name
from lensprune.tasks.base import Doc, MultipleChoiceFormat, RowRequest, Rows, Task
from lensprune.tasks.formats import letter_choice, letter_generation, uniform_chance
from lensprune.tasks.registry import register_task
from lensprune.tasks.sources import Dataset

__all__ = ["SUBJECTS", "mmlu"]

SUBJECTS = tuple(
    """
    abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
    college_computer_science college_mathematics college_medicine college_physics computer_security
    conceptual_physics econometrics electrical_engineering elementary_mathematics formal_logic global_facts
    high_school_biology high_school_chemistry high_school_computer_science high_school_european_history
    high_school_geography high_school_government_and_politics high_school_macroeconomics high_school_mathematics
    high_school_microeconomics high_school_physics high_school_psychology high_school_statistics
    high_school_us_history high_school_world_history human_aging human_sexuality international_law jurisprudence
    logical_fallacies machine_learning management marketing medical_genetics miscellaneous moral_disputes
    moral_scenarios nutrition philosophy prehistory professional_accounting professional_law professional_medicine
    professional_psychology public_relations security_studies sociology us_foreign_policy virology world_religions
    """.split()  # noqa: SIM905
)


def _question(doc: Doc) -> str:
    return str(doc["question"]).strip()


def _options(doc: Doc) -> list[str]:
    return list(doc["choices"])


def _gold(doc: Doc) -> int:
    return int(doc["answer"])


def _subject(doc: Doc) -> str:
    return str(doc["subject"])


def _description(doc: Doc) -> str:
    words = _subject(doc).replace("_", " ")
    return f"The following are multiple choice questions (with answers) about {words}.\n\n"


def _continuation_description(doc: Doc) -> str:
    return f"The following are questions (with answers) about {_subject(doc).replace('_', ' ')}.\n\n"


@dataclass(frozen=True)
class _SubjectRows:
    """Rows of one subject, or of all subjects, with each subject's few-shot rows."""

    subject: str

    def __call__(self, request: RowRequest) -> Rows:
        return Dataset(
            folder="mmlu",
            columns=("question", "subject", "choices", "answer"),
            hub="cais/mmlu",
            config=self.subject,
            fewshot_splits=("dev",),
            keep=lambda row: self.subject in ("all", row["subject"]),
        )(request)


@register_task
def mmlu(subject: str = "all") -> Task:
    """MMLU in lm-eval's three forms: ``mmlu`` (letters), ``mmlu_continuation`` and ``mmlu_generative``.

    As in lm-eval, each subject is separate: `limit` applies per subject, and few-shot examples are the first rows of
    the subject's dev split. An item's cluster is its subject.

    Raises:
        UserError: unknown subject.
    """
    if subject not in ("all", *SUBJECTS):
        raise unknown_name("subject of task 'mmlu'", subject, ("all", *SUBJECTS))
    return Task(
        name="mmlu",
        summary="57 school and university subjects, four options, 5 shots",
        kind="knowledge",
        formats={
            "default": letter_choice(_question, _options, _gold, _description),
            "continuation": MultipleChoiceFormat(
                context=lambda doc: f"Question: {_question(doc)}\nAnswer:",
                choices=_options,
                gold=_gold,
                description=_continuation_description,
                primary_metric="acc",
            ),
            "generate": letter_generation(_question, _options, _gold, _description, max_new_tokens=256),
        },
        chance=uniform_chance(_options),
        load=_SubjectRows(subject),
        default_shots=5,
        fewshot_sampler="first_n",
        by_cluster=True,
        item_id=lambda doc, index: f"{_subject(doc)}/{index}",
        cluster=_subject,
        lm_eval={
            "default": "mmlu_{cluster}",
            "continuation": "mmlu_{cluster}_continuation",
            "generate": "mmlu_{cluster}_generative",
        },
        licence="MIT",
        source="https://github.com/hendrycks/test",
    )
