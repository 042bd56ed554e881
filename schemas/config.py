"""The configuration of a run: one frozen pydantic model, a section a stage.

A TOML file has the same shape; `schemas.config_text` reads it.
"""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from schemas.cold_start import ColdStartConfig
from schemas.optimisation import OptimisationConfig
from schemas.reward_components import RewardComponents
from schemas.section import Section

DialogueFormat = Literal["tags", "text", "chat"]
"""Format of the dialogue between policy and program; `stages.dialogue` has a module for each."""


class ProblemsConfig(Section):
    """Where training problems come from."""

    path: str | None = None
    """JSONL or Parquet file, or Hugging Face dataset folder; null for the embedded families."""
    problem_field: str = "problem"
    answer_field: str = "answer"
    id_field: str | None = "id"
    """Field of the identifier; rows without one are named by their position."""
    levels: tuple[Annotated[int, Field(ge=1, le=8)], ...] = Field((1, 2, 3), min_length=1)
    """Embedded families: numbers of chained steps of a problem, drawn evenly."""


class PolicyConfig(Section):
    """The policy that is trained."""

    path: str | None = None
    """Hugging Face folder with model and tokenizer; null for the embedded tiny policy."""
    hidden_size: int = Field(96, ge=8)
    layers: int = Field(4, ge=1)
    heads: int = Field(4, ge=1)
    feed_forward_size: int = Field(256, ge=8)
    vocabulary_size: int = Field(512, ge=300)
    max_context_tokens: int = Field(512, ge=32)

    @model_validator(mode="after")
    def _heads_divide_hidden(self) -> "PolicyConfig":
        if self.hidden_size % (2 * self.heads):
            raise ValueError("hidden_size must be a multiple of twice the heads")
        return self


def _usable(temperature: float) -> float:
    if 0 < temperature < 0.01:
        raise ValueError("must be 0, which samples greedily, or at least 0.01")
    return temperature


Temperature = Annotated[float, Field(ge=0), AfterValidator(_usable)]


class RolloutConfig(Section):
    """Sampling of trajectories."""

    engine: Literal["transformers", "vllm"] = "transformers"
    """What samples: transformers in this process, or the vLLM server of the section `vllm`."""
    prompts: int = Field(32, ge=1)
    """Groups of an iteration."""
    samples: int = Field(8, ge=1)
    """Trajectories of a group."""
    shards: int = Field(2, ge=1)
    """Parts of whole groups that run beside each other."""
    max_turns: int = Field(5, ge=1)
    """Turns of a trajectory, the answering one included."""
    max_turn_tokens: int = Field(130, ge=1)
    max_trajectory_tokens: int | None = Field(None, ge=1)
    """Most tokens after the prompt, sampled and inserted; null for what the context holds."""
    dialogue: DialogueFormat = "tags"
    """`tags` are control tokens that the cold start teaches; `text` are tags in plain text, for
    pretrained models; `chat` are tool calls through the model's own chat template."""
    temperature: Temperature = 1.0
    """0 samples greedily; else at least 0.01, for vLLM raises to that what is below."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Share of probability that is sampled from, the likeliest tokens first."""
    top_k: int = Field(0, ge=0)
    """Most tokens that are sampled from; 0 for all."""
    resample_rounds: int = Field(0, ge=0, le=100)
    """Most rounds of further groups, in place of those that are all right or all wrong."""
    stale: bool = False
    """Whether an iteration is sampled while the one before is still learned from, with the policy
    before that."""


class ExecutionConfig(Section):
    """Isolation and limits of one snippet."""

    backend: Literal["sandbox", "sandbox_fusion", "unsafe_local"] = "sandbox"
    """`sandbox_fusion` sends code to the server at `fusion_url`. `unsafe_local` runs it without
    isolation: only for code that you trust."""
    workers: int = Field(2, ge=1)
    """Snippets that compute beside each other; more are in flight while these wait."""
    wall_time_s: float = Field(5.0, ge=0.05, le=86_400)
    """Waiting for a processor that others use does not count."""
    cpu_time_s: int = Field(5, ge=1, le=86_400)
    memory_mib: int = Field(512, ge=64, le=2**20)
    """On top of the interpreter with its preloaded modules."""
    output_kib: int = Field(64, ge=1, le=2**20)
    file_size_mib: int = Field(16, ge=0, le=2**20)
    threads: int = Field(32, ge=1, le=4096)
    """Threads that one snippet may have; with `child_processes` its processes count too."""
    child_processes: bool = False
    """Whether a snippet may start processes. Each then has `memory_mib` for itself."""
    preload: tuple[Annotated[str, Field(pattern=r"^[^\W\d]\w*(\.[^\W\d]\w*)*$")], ...] = Field(
        ("numpy", "sympy"), max_length=64
    )
    """Modules that are imported once, before any snippet runs. A snippet finds imported all up to
    the last that its text names: name the lighter and more usual ones first."""
    show_last_value: bool = True
    """Whether the value of a last expression is shown if nothing was printed, as notebooks do."""
    state: Literal["fresh", "replayed"] = "fresh"
    """`replayed` runs the code of earlier turns again first, so that a turn finds their state."""
    files_path: str | None = Field(None, min_length=1)
    """Folder that snippets of the sandbox can read as /files."""
    fusion_url: str | None = None
    """Address of a SandboxFusion server, such as http://sandbox:8080."""
    observation_chars: int = Field(256, ge=16)
    """Longest observation shown to the policy; the middle of a longer one is cut out."""
    fault_rate: float = Field(0.0, ge=0, lt=1)
    """Share of calls, drawn by the turn's seed, that are answered by a tool's failure in place of
    being run: for policies that are to bear unreliable tools, and for the study of them."""

    @model_validator(mode="after")
    def _files_need_the_sandbox(self) -> "ExecutionConfig":
        if self.files_path is not None and self.backend != "sandbox":
            raise ValueError(f"files_path is only there for backend sandbox, not {self.backend}")
        return self


class TurnRewardsConfig(Section):
    """Turn reward of GTPO: accuracy on the last turn, penalties of form."""

    invalid_call_penalty: float = Field(-0.1, ge=-1e6, le=0)
    no_tool_penalty: float = Field(-0.1, ge=-1e6, le=0)
    syntax_error_is_invalid: bool = True
    """Whether code that is no Python counts as an invalid call (open in the paper)."""
    grading_time_s: float = Field(5.0, gt=0, le=86_400)
    components: RewardComponents = RewardComponents()
    """Optional further components, by default worth nothing."""


class SimilarityConfig(Section):
    """Partial reward for wrong trajectories whose code resembles that of right ones."""

    alpha: float = Field(0.5, ge=0, le=1)
    """Largest shaped accuracy; 0 switches shaping off."""
    measure: Literal["edit", "ngram", "tree", "embedding", "codebleu"] = "edit"
    """How code is compared; `stages.similarity` has a module with the formula of each."""
    ngram: int = Field(3, ge=1)
    """Tokens of an n-gram of `ngram`."""
    embedding_path: str | None = None
    """Folder of a sentence-transformers model, for `embedding`."""
    scope: Literal["trajectory", "turn"] = "trajectory"
    """`trajectory` shapes the last turn by the code of all, as the paper; `turn` each with code."""
    aggregate: Literal["mean", "max"] = "mean"
    """Over the right peers; the paper takes the mean."""

    @model_validator(mode="after")
    def _embedding_needs_a_model(self) -> "SimilarityConfig":
        if self.measure == "embedding" and self.embedding_path is None:
            raise ValueError("embedding_path is needed by measure=embedding: name a model's folder")
        return self


class AdvantagesConfig(Section):
    """Credit of a turn."""

    estimator: Literal[
        "gtpo",
        "grpo",
        "dr_grpo",
        "rloo",
        "reinforce_pp",
        "reinforce_pp_baseline",
        "mt_grpo",
        "gigpo",
        "tree_td",
    ] = "gtpo"
    gamma: float = Field(1.0, ge=0, le=1)
    """Discount of a turn, for GTPO, REINFORCE++ and GiGPO. The paper discounts by 0.9."""
    normalise: Literal["group", "batch", "turn_index"] = "group"
    """Set over which GTPO takes mean and standard deviation of the returns."""
    baseline: Literal["mean", "leave_one_out", "length"] = "mean"
    """What GTPO subtracts: the mean of the set, that of the other trajectories, or the mean moved
    along the slope in the turn count. The paper takes the mean."""
    scale: Literal["std", "off"] = "std"
    """What GTPO divides by, `off` for nothing; the paper takes the standard deviation."""
    turn_weight: float = Field(1.0, ge=0)
    """Weight of the turn's part: lambda of MT-GRPO, omega of GiGPO, and of `agreement`."""
    groups_without_outcome_variance: Literal["drop", "keep", "scale", "agreement"] = "agreement"
    """Groups that are all right or all wrong: the paper does not say; noise if kept. `scale`
    divides by the standard deviation of the batch in place of their own. `agreement`, ours, drops
    those that are all right, and credits turns of the others by what peers were shown."""


class EvaluationConfig(Section):
    """Evaluation on held-out problems."""

    every: int = Field(5, ge=1)
    """Iterations between evaluations; the first and the last policy are always evaluated."""
    problems: int = Field(64, ge=1)
    samples: int = Field(4, ge=1)
    """Samples a problem, k of avg@k."""
    shards: int = Field(2, ge=1)
    temperature: Temperature = 1.0
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=0)
    path: str | None = None
    """Held-out problems as in `problems.path`; null for the embedded held-out problems."""


class VllmConfig(Section):
    """The vLLM server that samples under `rollout.engine=vllm`."""

    python: str = Field(".venv-vllm/bin/python", min_length=1)
    """Python of the environment with vLLM, from which the server is started; `make vllm` makes
    one for CPUs."""
    url: str | None = Field(None, pattern="^https?://")
    """Address of a server that runs already, such as http://sampler:8000; none is started then.
    Its key is read from the environment variable TURNLEDGER_VLLM_API_KEY."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Numbers that the server computes with."""
    gpu_memory_share: float = Field(0.4, gt=0, le=1)
    """Part of a GPU's memory that the server takes; the optimiser may need the rest."""
    kv_cache_gib: int = Field(1, ge=1)
    """Memory for keys and values on a CPU."""
    threads: int = Field(1, ge=1)
    """Threads of the model on a CPU; one is fastest for small policies."""
    start_time_s: float = Field(600.0, gt=0, le=86_400)
    """How long starting the server or loading other weights may take."""
    silence_time_s: float = Field(120.0, gt=0, le=86_400)
    """How long the server may compute nothing while it is asked, or leave a question about itself
    open, before it counts as hung."""
    request_time_s: float = Field(3_600.0, gt=0, le=86_400)
    """How long one turn may wait for its tokens."""
    restarts: int = Field(3, ge=0)
    """How often the server is started again while one policy samples."""


class ComputeConfig(Section):
    """Use of the machine."""

    threads: int = Field(2, ge=1)
    """Threads of torch. Results repeat bit for bit only with equal threads."""
    processes: int = Field(1, ge=1)
    """Processes of the optimiser, each with `threads`, and on a GPU of its own where `device` is
    such as `cuda`. Results repeat bit for bit only with equally many."""
    device: str = "cpu"
    """Torch device of the embedded engine and of the optimiser."""
    cache_mib: int = Field(2_048, ge=1)
    """Most memory for keys and values of the rows that the embedded engine decodes together."""
    keep_policies: int | None = Field(None, ge=2)
    """Policies of a training that are kept: the last so many, and those of the cold start and of
    the best evaluation; null for all. Tables are always kept."""
    verify: Literal["full", "sampled"] = "full"
    """How stored results are verified: every byte, or sizes and a few blocks of large files."""
    task_runner: Literal["threads", "ray", "dask"] = "threads"
    """Where shards execute code, are scored and compared: on threads of the flow's process, or on
    the workers of a Ray or Dask cluster. Sampling and learning stay in the flow's process."""
    cluster_url: str | None = Field(None, min_length=1)
    """Address of a cluster that runs already, such as head:6379 (Ray) or tcp://head:8786 (Dask);
    null starts one on this machine for the time of the flow."""

    @model_validator(mode="after")
    def _an_address_is_that_of_a_cluster(self) -> "ComputeConfig":
        if self.cluster_url is not None and self.task_runner == "threads":
            raise ValueError(
                f"cluster_url={self.cluster_url} is that of a cluster: set task_runner=ray or dask"
            )
        return self

    @model_validator(mode="after")
    def _processes_have_devices_of_their_own(self) -> "ComputeConfig":
        if self.processes > 1 and ":" in self.device:
            raise ValueError(
                f"processes={self.processes} each have a device of their own: set "
                f"device={self.device.partition(':')[0]}, not {self.device}"
            )
        return self


class RunConfig(Section):
    """Everything that decides what a run computes."""

    seed: int = Field(0, ge=0, lt=2**31)
    iterations: int = Field(20, ge=0)
    problems: ProblemsConfig = ProblemsConfig()
    policy: PolicyConfig = PolicyConfig()
    cold_start: ColdStartConfig = ColdStartConfig()
    rollout: RolloutConfig = RolloutConfig()
    execution: ExecutionConfig = ExecutionConfig()
    turn_rewards: TurnRewardsConfig = TurnRewardsConfig()
    similarity: SimilarityConfig = SimilarityConfig()
    advantages: AdvantagesConfig = AdvantagesConfig()
    optimisation: OptimisationConfig = OptimisationConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    vllm: VllmConfig = VllmConfig()
    compute: ComputeConfig = ComputeConfig()

    @model_validator(mode="after")
    def _resampling_replaces_what_is_left_out(self) -> "RunConfig":
        kept = self.advantages.groups_without_outcome_variance
        if self.rollout.resample_rounds and kept in ("keep", "scale"):
            raise ValueError(
                "rollout.resample_rounds: further groups are asked in place of those without "
                "variance of outcome, which are kept here: set "
                f"advantages.groups_without_outcome_variance=drop or agreement, not {kept}"
            )
        return self

    @model_validator(mode="after")
    def _own_problems_need_held_out_ones(self) -> "RunConfig":
        if self.problems.path is not None and self.evaluation.path is None:
            raise ValueError(
                "evaluation.path: problems.path is set, so held-out problems need a path too"
            )
        return self
