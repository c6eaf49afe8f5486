# SPDX-License-Identifier: Apache-2.0
"""Every setting of a run, section by section. The defaults are what we recommend.

The text under each field is the user's reference: `rzero run --print-config` shows it.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Several = Annotated[int, Field(ge=2)]
Amount = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    """A frozen set of fields that refuses names it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class EngineSettings(Section):
    """Where and how the one engine of the run computes."""

    device: str = "cpu"
    """torch device: cpu, cuda, cuda:0"""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """number type of the weights; auto: bf16 where the device multiplies it fast, else fp32"""
    kernels: dict[str, str] = {}
    """backend per op, for example {default: auto, attention: ref}"""
    page_size: Count = 16
    """tokens per page of the key/value cache"""
    num_pages: Count | None = None
    """pages in the pool; null: as many as kv_cache_gib holds"""
    kv_cache_gib: Amount | None = None
    """memory for the key/value cache in GiB; null: chosen by the engine"""
    max_seqs: Count = 256
    """most sequences that run at once"""
    max_batch_tokens: Count = 2048
    """most tokens in one forward pass while sampling"""
    max_model_len: Count | None = None
    """longest prompt plus answer in tokens; null: what the model allows"""
    threads: Count | None = None
    """CPU threads; null: all"""


class LoraSettings(Section):
    """Adapters, used when roles = lora."""

    rank: Count = 16
    """rank of each adapter"""
    alpha: Amount = 32.0
    """an adapter's product is multiplied by alpha / rank"""


class Sampling(Section):
    """How answers or questions are drawn."""

    temperature: Amount = 1.0
    """0 takes the most likely token"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """keep the most likely tokens that hold this share; 1: off"""
    top_k: Whole = 0
    """keep the k most likely tokens; 0: off"""
    max_tokens: Count = 4096
    """most tokens of one sample"""


class Training(Section):
    """One phase of GRPO. The old log-probs are those that sampling reported."""

    updates_per_step: Count = 1
    """optimizer updates on one step's samples; advantages are taken over the whole step first"""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-6
    """AdamW step size"""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW decay of the first moment"""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """AdamW decay of the second moment"""
    weight_decay: Amount = 0.01
    """AdamW weight decay"""
    grad_clip: Amount = 1.0
    """largest gradient norm"""
    warmup_steps: Whole = 0
    """updates over which the learning rate rises from 0"""
    clip_low: Share = 0.2
    """the ratio is clipped below 1 - clip_low"""
    clip_high: Amount = 0.3
    """the ratio is clipped above 1 + clip_high"""
    clip_dual: Annotated[float, Field(gt=1)] | None = 3.0
    """bound on the loss of a bad sample whose ratio explodes; null: off"""
    kl_coef: Amount = 0.01
    """weight of the KL to the reference in the loss"""
    kl_estimator: Literal["k1", "k2", "k3"] = "k3"
    """estimator of the KL of one token"""
    kl_reference: Literal["phase", "base"] = "phase"
    """what the KL is taken to: the role at the start of the phase, or the base"""
    advantage: Literal["std", "center", "loo"] = "std"
    """reward minus the mean, over the unbiased std; only minus the mean; or minus the mean of the others"""
    loss_mean: Literal["token", "sequence"] = "sequence"
    """average over the tokens of the update, or over each sample's tokens and then over samples"""
    micro_batch_tokens: Count = 8192
    """most tokens in one forward and backward pass; changes the memory, not the gradient"""
    keep_optimizer: bool = False
    """carry the optimizer's moments from one phase of a role to its next"""


class ChallengerSettings(Training):
    """The Challenger's phase: it is paid for valid, varied questions on which the Solver is of two minds."""

    steps: Whole = 5
    """steps in each iteration; 0: the Challenger stays as it is"""
    questions_per_step: Several = 2048
    """questions sampled in one step"""
    group: Several | None = 4
    """questions compared with each other for the advantage; null: the whole step"""
    votes: Count = 10
    """answers of the Solver to each question"""
    sampling: Sampling = Sampling()
    """how questions are drawn in a training step"""
    updates_per_step: Count = 32
    """optimizer updates on one step's samples; advantages are taken over the whole step first"""
    reward_scale: Amount = 1.0
    """the uncertainty reward is this times 1 - 2 |p - 1/2|, p being the majority's share of the votes"""
    repetition_weight: Amount = 1.0
    """a question loses this times the share of the valid questions that lie in its cluster"""
    repetition_distance: Share = 0.5
    """clusters nearer than this on average (1 - BLEU) are one"""
    invalid_reward: Annotated[float, Field(le=0)] = -1.0
    """reward of a question that cannot be used"""
    reward_floor: float | None = None
    """least reward of a valid question; null: none"""

    @model_validator(mode="after")
    def _fits(self) -> "ChallengerSettings":
        if self.group is not None and self.questions_per_step % self.group:
            raise ValueError(
                f"challenger.questions_per_step = {self.questions_per_step} must be a multiple of "
                f"challenger.group = {self.group}"
            )
        return self


class PoolSettings(Section):
    """The question pool: candidates are drawn, answered by vote, and kept when neither easy nor hopeless."""

    candidates: Count = 8000
    """questions drawn from the Challenger"""
    votes: Count = 10
    """answers of the Solver to each candidate"""
    keep_low: Count = 3
    """fewest votes for the majority's answer with which a question is kept"""
    keep_high: Count = 7
    """most votes for the majority's answer with which a question is kept"""
    sampling: Sampling = Sampling(top_p=0.95)
    """how candidates are drawn"""

    @model_validator(mode="after")
    def _band(self) -> "PoolSettings":
        if not self.keep_low <= self.keep_high <= self.votes:
            raise ValueError(
                f"pool.keep_low = {self.keep_low}, pool.keep_high = {self.keep_high} "
                f"and pool.votes = {self.votes} must be in rising order"
            )
        return self


class SolverSettings(Training):
    """The Solver's phase: it is paid for giving the majority's answer to the questions of the pool."""

    steps: Count = 15
    """steps in each iteration"""
    questions_per_step: Count = 512
    """questions in one step; the whole pool where it is smaller"""
    samples: Several = 5
    """answers to each question; they are compared with each other for the advantage"""
    sampling: Sampling = Sampling()
    """how answers are drawn in a training step"""
    updates_per_step: Count = 4
    """optimizer updates on one step's samples; advantages are taken over the whole step first"""


class EvaluationSettings(Section):
    """What is measured on held-out problems, for the base and for the Solver after each iteration."""

    sets: tuple[str, ...] | None = None
    """names of the task's held-out sets; null: all"""
    problems: Count | None = None
    """most problems of each set, taken from its start; null: all"""
    samples: Whole = 8
    """sampled answers per problem for mean@k and majority@k; 0: greedy only"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """temperature of the sampled answers"""
    max_tokens: Count = 4096
    """most tokens of an answer"""
    every: Count = 1
    """measure after every n-th iteration; the base and the last are always measured"""


class Settings(Section):
    """One R-Zero run."""

    model: str = "tiny"
    """Hugging Face folder or hub name; tiny: the model in the package"""
    task: str = "math"
    """what the questions are about: math, arithmetic, or a registered task"""
    data: str | None = None
    """folder of held-out sets, <name>.jsonl with {"problem", "answer"} lines, for tasks that read them"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1
    """every random choice of the run follows from it"""
    iterations: Count = 3
    """Challenger, pool, Solver and evaluation, this many times"""
    roles: Literal["full", "lora", "single"] = "full"
    """two full sets of weights, two adapters on one base, or one set of weights in both roles"""
    ablation: bool = False
    """afterwards run an untrained Challenger with a Solver of its own, for comparison"""
    checkpoint_every: Count = 1
    """finished steps between saved states; more spares the disk and loses more when interrupted"""
    max_question_tokens: Count = 2048
    """longest question in tokens, counted as the Solver's prompt"""
    output: str | None = None
    """run folder; null: chosen by the command line"""
    engine: EngineSettings = EngineSettings()
    """where and how to compute"""
    lora: LoraSettings = LoraSettings()
    """adapters, when roles = lora"""
    voting: Sampling = Sampling(top_k=40)
    """how the Solver's votes are drawn"""
    challenger: ChallengerSettings = ChallengerSettings()
    """the Challenger's phase"""
    pool: PoolSettings = PoolSettings()
    """the question pool"""
    solver: SolverSettings = SolverSettings()
    """the Solver's phase"""
    evaluation: EvaluationSettings = EvaluationSettings()
    """what is measured on held-out problems"""
