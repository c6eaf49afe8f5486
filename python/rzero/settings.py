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
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """adamw_8bit: moments of a byte each, by bitsandbytes"""
    numerics: Literal["auto", "exact", "fast"] = "auto"
    """exact: log-probs of sampler and trainer are equal, or a run stops; auto: so with native kernels"""
    cuda_graphs: bool = False
    """record the steps that decode as CUDA graphs and replay them; no GPU has shown it yet"""
    check_memory: bool = True
    """refuse a run that is planned to need more memory than is free"""


class LoraSettings(Section):
    """Adapters, used when roles = lora."""

    rank: Count = 16
    """rank of each adapter"""
    alpha: Amount = 32.0
    """an adapter's product is multiplied by alpha / rank"""


class Sampling(Section):
    """How answers or questions are drawn."""

    temperature: Annotated[float, Field(gt=0)] = 1.0
    """below 1 likely tokens come more often still; samples that all take the likeliest would be one"""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """keep the most likely tokens that hold this share; 1: off"""
    top_k: Whole = 0
    """keep the k most likely tokens; 0: off"""
    max_tokens: Count = 4096
    """most tokens of one sample"""


class VotingSettings(Sampling):
    """How the Solver's votes are drawn and counted, for rewards and labels alike."""

    same_no: bool = False
    """two answers that both hold "no " count as the same, whatever else they say (a rule of the authors)"""


class Training(Section):
    """One phase of GRPO. The old log-probs are those that sampling reported."""

    steps: Whole = 5
    """steps in each iteration"""
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
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """how the rate goes on: it stays, or falls to 0 at the phase's end (at the run's, if keep_optimizer)"""
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

    def total_updates(self, iterations: int) -> int:
        """Updates over which the schedule runs: of one phase, or of all if the optimizer is kept."""
        return self.steps * self.updates_per_step * (iterations if self.keep_optimizer else 1)


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
    repetition_base: Literal["valid", "all"] = "valid"
    """B, of which a cluster is a share: the valid questions of the step, or all of its texts"""
    earlier_weight: Amount = 0.0
    """a question also loses this times its BLEU with the nearest question of the pools before; 0: off"""
    earlier_questions: Count = 256
    """how many of the latest questions of the pools before new ones are compared with"""
    invalid_reward: Annotated[float, Field(le=0)] = -1.0
    """reward of a question that cannot be used"""
    invalid_penalty: bool = False
    """a text that cannot be used loses repetition_weight / B besides, as a cluster of its own"""
    only_confirmed: bool = False
    """pay for disagreement only where the Challenger's own answer is the majority's; elsewhere p is 0"""
    failed_vote: Literal["drop", "invalid"] = "drop"
    """a question on which the judge gave up is left out of training, or earns invalid_reward"""
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
    keep_shares: tuple[Share, Share] | None = None
    """instead of keep_low and keep_high: bounds on the majority's share of the answers that have a box"""
    only_confirmed: bool = False
    """keep a question only where the Challenger's own answer is the majority's, too"""
    skip_in_question: tuple[str, ...] = ()
    """a question that holds one of these texts is not kept"""
    skip_in_label: tuple[str, ...] = ()
    """a question whose majority answer holds one of these texts is not kept"""
    reuse_votes: bool = False
    """begin the pool with the questions and votes of the Challenger's last step and draw that many fewer"""
    sampling: Sampling = Sampling(top_p=0.95)
    """how candidates are drawn"""

    @model_validator(mode="after")
    def _band(self) -> "PoolSettings":
        if self.keep_shares is not None:
            if self.keep_shares[0] > self.keep_shares[1]:
                raise ValueError(f"pool.keep_shares = {list(self.keep_shares)} must be in rising order")
            return self
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
    format_weight: Share = 0.0
    """this part of the reward is for a text that thinks between <think> and </think> and then boxes"""
    edit_before_grading: bool = False
    """take away blanks around <, > and / before an answer is graded (a habit of the authors' code)"""


class EvaluationSettings(Section):
    """What is measured on held-out problems, for the base and for the Solver after each iteration."""

    sets: tuple[str, ...] | None = None
    """names of the task's held-out sets; null: all"""
    problems: Count | None = None
    """most problems of each set, taken from its start; null: all"""
    shuffle: Whole | None = None
    """seed of a random order of each set, whose start is then taken; null: the order it comes in"""
    samples: Whole = 8
    """sampled answers per problem for mean@k and majority@k; 0: greedy only"""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """temperature of the sampled answers"""
    max_tokens: Count = 4096
    """most tokens of an answer"""
    every: Count = 1
    """measure after every n-th iteration; the base and the last are always measured"""


class Threshold(Section):
    """Where a gauge warns, stops the run, or ends it with the best iteration's models as its result."""

    warn: float | None = None
    """say so"""
    stop: float | None = None
    """end the run"""
    rollback: float | None = None
    """end the run with the best iteration as its result"""


class GaugeSettings(Section):
    """Gauges of the known ways to fail, read after each step; null: never."""

    unboxed_share: Threshold = Threshold(warn=0.5)
    """share of the Solver's answers without a box; bad above"""
    keep_share: Threshold = Threshold(warn=0.05)
    """share of the pool's questions that are kept; bad below"""
    agreement_low: Threshold = Threshold(warn=0.15)
    """mean share of the majority's votes; bad below: the questions are hopeless"""
    agreement_high: Threshold = Threshold(warn=0.95)
    """mean share of the majority's votes; bad above: too easy, or the Solver has collapsed"""
    distinct_share: Threshold = Threshold(warn=0.5)
    """share of different questions among the valid ones of a Challenger step; bad below"""
    similarity_to_earlier: Threshold = Threshold(warn=0.8)
    """mean BLEU of new questions with the nearest of the pools before; bad above"""
    challenger_agrees: Threshold = Threshold(warn=0.02)
    """how often the Challenger's own answer is the majority's; bad below"""
    length_grows: Threshold = Threshold(warn=4.0)
    """length of the Solver's answers over that of its first step; bad above"""
    length_shrinks: Threshold = Threshold(warn=0.25)
    """length of the Solver's answers over that of its first step; bad below"""
    entropy: Threshold = Threshold(warn=0.01)
    """entropy of either role in nats per token; bad below"""
    kl_to_base: Threshold = Threshold(warn=5.0)
    """KL of either role to the base in nats per token; bad above"""
    mismatch: Threshold = Threshold(warn=1.0)
    """largest difference of sampler's and trainer's log-probs; bad above; an exact engine stops at any"""
    accuracy_drop: Threshold = Threshold(warn=0.05)
    """held-out accuracy below the best so far (mean over the sets of mean@k, or greedy); bad above"""
    set_accuracy_drop: Threshold = Threshold(warn=0.1)
    """a held-out set's accuracy below the best so far on that set, the worst of the sets; bad above"""


class Settings(Section):
    """One R-Zero run."""

    model: str = "tiny"
    """Hugging Face folder or hub name; tiny: the model in the package"""
    task: str = "math"
    """what the questions are about: math, arithmetic, or a registered task"""
    anchors: str | None = None
    """JSON lines {"question", "answer"} by people, some of which the Challenger's prompt shows; null: none"""
    anchors_shown: Count = 3
    """examples in one prompt, chosen at random"""
    anchors_every: Count = 8
    """questions of a pool from one prompt; the next ones are shown other examples"""
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
    voting: VotingSettings = VotingSettings(top_k=40)
    """how the Solver's votes are drawn and counted"""
    challenger: ChallengerSettings = ChallengerSettings()
    """the Challenger's phase"""
    pool: PoolSettings = PoolSettings()
    """the question pool"""
    solver: SolverSettings = SolverSettings()
    """the Solver's phase"""
    evaluation: EvaluationSettings = EvaluationSettings()
    """what is measured on held-out problems"""
    gauges: GaugeSettings = GaugeSettings()
    """when a run warns, stops, or rolls back"""

    @model_validator(mode="after")
    def _schedules(self) -> "Settings":
        for name, how in (("challenger", self.challenger), ("solver", self.solver)):
            updates = how.total_updates(self.iterations)
            if how.schedule == "constant" or not updates:
                continue
            if updates <= how.warmup_steps:
                raise ValueError(
                    f"{name}.warmup_steps = {how.warmup_steps} must be below the {updates} updates over "
                    f"which {name}.schedule = {how.schedule} runs"
                )
            if self.roles == "single" and how.keep_optimizer:
                raise ValueError(
                    f"{name}.schedule = {how.schedule} with {name}.keep_optimizer needs roles = full or "
                    "lora: a single role has one count of updates for both phases"
                )
        return self

    @model_validator(mode="after")
    def _same_votes(self) -> "Settings":
        if self.pool.reuse_votes and self.pool.votes != self.challenger.votes:
            raise ValueError(
                f"pool.reuse_votes needs as many votes in both phases; pool.votes = {self.pool.votes}, "
                f"challenger.votes = {self.challenger.votes}"
            )
        return self
