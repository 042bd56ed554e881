"""How fast, how large and how dear a training would be on so many GPUs: arithmetic, no measuring.

What a figure rests on stands with it in `Assumptions`: measured here, with the command that
measures it again, or assumed, with where it was read.
"""

import math

from pydantic import ConfigDict, Field

from schemas.errors import ConfigError
from schemas.section import Section

SECONDS_AN_HOUR = 3_600
SECONDS_A_DAY = 86_400
GIB = 2**30


class Assumptions(Section):
    """What a sizing rests on.

    By default a policy with the shape of Qwen2.5-7B on H100s, and batches of 128 groups of 16.
    """

    model_config = ConfigDict(use_attribute_docstrings=True)

    parameters: float = Field(7.6e9, gt=0)
    """Of the policy; its config.json, like the three that follow."""
    layers: int = Field(28, ge=1)
    hidden_size: int = Field(3_584, ge=1)
    kv_size: int = Field(512, ge=1)
    """Numbers of the keys of a token in a layer: heads of keys times numbers of a head."""

    groups: int = Field(128, ge=1)
    """Of an iteration: `rollout.prompts`."""
    samples: int = Field(16, ge=1)
    """Of a group: `rollout.samples`."""
    turns: float = Field(3.0, gt=0)
    """Of a trajectory, on average; the embedded policy ends with 3.0 (`make quickstart`)."""
    max_turns: int = Field(5, ge=1)
    """`rollout.max_turns`."""
    prompt_tokens: float = Field(300.0, ge=0)
    turn_tokens: float = Field(400.0, gt=0)
    """Sampled in a turn, on average."""
    max_turn_tokens: int = Field(2_048, ge=1)
    """`rollout.max_turn_tokens`."""
    observation_tokens: float = Field(100.0, ge=0)
    """Inserted after a turn with code, on average."""
    shards: int = Field(16, ge=1)
    """`rollout.shards`."""

    gpu_memory_gib: float = Field(80.0, gt=0)
    gpu_tflop_per_s: float = Field(989.0, gt=0)
    """Dense bfloat16: data sheet of the H100 SXM."""
    gpu_tb_per_s: float = Field(3.35, gt=0)
    """Of its memory: the same data sheet."""
    decode_utilisation: float = Field(0.2, gt=0, le=1)
    """Of a GPU whose batch is full, sampling. Assumed: 12,500 tokens/s of Llama 3.1 8B on one H100
    in vLLM, as morphllm.com/vllm-benchmarks tells of third parties (April 2026), are 0.20."""
    training_utilisation: float = Field(0.3, gt=0, le=1)
    """Of a GPU that trains, or reads prompts. Assumed: 7,500 tokens/s of a 7B on each of 96 H100s,
    as github.com/foundation-model-stack/fms-fsdp tells, are 0.31; lengths there are equal."""
    overlap_factor: float = Field(1.07, ge=1)
    """A rollout with code against one without. Measured: `python -m benchmarks.overlap`."""
    gpu_usd_per_hour: float = Field(2.5, ge=0)
    """Assumed: lowest on-demand price of speciality clouds, mercatus-ai.com/blog/cloud-gpu-pricing
    (May 2026), which tells of 2.50 to 5.00."""

    cores_a_gpu: int = Field(16, ge=1)
    """Cores beside each GPU. Assumed: as the clouds above rent them."""
    snippets_per_s_a_core: float = Field(71.0, gt=0)
    """Measured, with sympy imported, on two cores: `python -m benchmarks.execution`."""
    scored_turns_per_s_a_core: float = Field(16_200.0, gt=0)
    """Turn rewards, similarity and advantages. Measured, on two cores, of a million turns:
    `python -m benchmarks.rescoring`."""
    stage_run_s: float = Field(0.008, ge=0)
    """Prefect and store, beside the work. Measured: `python -m benchmarks.orchestration`."""
    store_gb_per_s: float = Field(1.5, gt=0)
    """Writing, reading and digesting a policy. Assumed: SHA-256 on one core and a local disk."""
    bytes_a_sampled_token: float = Field(8.0, gt=0)
    """Of the tables of an iteration, in Parquet. Assumed: twice the 3.8 of the quickstart's run,
    `python -m benchmarks.table_bytes`, whose vocabulary has 293 tokens."""
    bytes_a_turn: float = Field(250.0, gt=0)
    """The same, beside what grows with the tokens. Measured: `python -m benchmarks.table_bytes`, of
    the quickstart's run."""
    kept_policies: int = Field(5, ge=1)
    """`compute.keep_policies`, and those of the cold start and of the best evaluation."""
    storage_usd_per_gb_month: float = Field(0.023, ge=0)
    """Assumed: list price of S3 Standard in us-east-1."""

    weight_bytes: int = Field(4, ge=1)
    """Of a stored and trained parameter: float32."""
    gradient_bytes: int = Field(4, ge=1)
    optimiser_bytes: int = Field(8, ge=0)
    """Both moments of AdamW, float32."""
    sampled_weight_bytes: int = Field(2, ge=1)
    """Of a parameter in the engine, and of a number in its cache: bfloat16."""
    engine_memory_share: float = Field(0.4, gt=0, le=1)
    """`vllm.gpu_memory_share`."""
    micro_batch_tokens: int = Field(4_096, ge=1)
    """`optimisation.micro_batch_tokens` of each process."""
    activation_bytes: float = Field(34.0, gt=0)
    """A token, a layer and a number of the hidden size. arXiv 2205.05198, equation 1, without the
    scores of attention, which are not kept."""


class Memory(Section):
    """Of one GPU, in GiB, while the policy is trained; the engine keeps its part meanwhile."""

    weights_gib: float
    gradients_gib: float
    optimiser_gib: float
    gathered_gib: float
    """Weights and gradients of the two blocks that are put together at a time."""
    activations_gib: float
    """The head adds nothing to speak of: it works in chunks of eight million logits."""
    engine_weights_gib: float
    engine_cache_gib: float
    """Keys and values."""
    trajectories_in_cache: int
    """Of average length, that fit side by side."""

    @property
    def training_gib(self) -> float:
        """What the optimiser takes."""
        return (
            self.weights_gib
            + self.gradients_gib
            + self.optimiser_gib
            + self.gathered_gib
            + self.activations_gib
        )

    @property
    def total_gib(self) -> float:
        """What optimiser and engine take together."""
        return self.training_gib + self.engine_weights_gib + self.engine_cache_gib


class Sizing(Section):
    """What a fleet would come to; times are those of an iteration of each of its runs."""

    gpus: int
    """That work; those that are too few for another run are left out."""
    runs: int
    rollout_s: float
    scoring_s: float
    training_s: float
    policy_s: float
    """Storing the policy, and giving it to the engine."""
    orchestration_s: float
    iteration_s: float
    sampled_tokens: float
    """Of an iteration of one run."""
    tokens_per_s: float
    """Sampled by the whole fleet, over whole iterations."""
    tables_gb_a_day: float
    policies_gb: float
    """Kept by all runs."""
    usd_an_iteration: float
    """Of one run."""
    usd_a_million_tokens: float
    usd_a_day: float
    storage_usd_a_month: float
    """Of the policies, and of the tables of thirty days."""
    memory: Memory


def size(assumed: Assumptions, *, gpus: int, gpus_a_run: int) -> Sizing:
    """Computes what a fleet comes to.

    The stages of an iteration follow each other, except that code is executed while other shards
    sample. A rollout takes the longest of three: the tokens at the rate of GPUs that are as full as
    the batch makes them, the longest trajectory alone, and the snippets on the cores.

    Args:
        assumed: What it rests on.
        gpus: GPUs there are.
        gpus_a_run: GPUs that one run takes; as many runs as there is room for stand side by side.

    Raises:
        ConfigError: If there are fewer GPUs than one run takes, or the engine has no room.
    """
    if not 1 <= gpus_a_run <= gpus:
        raise ConfigError(f"a run takes {gpus_a_run} GPUs, and there are {gpus}")
    runs = gpus // gpus_a_run
    trajectories = assumed.groups * assumed.samples
    turns = trajectories * assumed.turns
    snippets = turns - trajectories  # the last turn of a trajectory answers
    sampled = turns * assumed.turn_tokens
    read = trajectories * assumed.prompt_tokens + snippets * assumed.observation_tokens
    cores = gpus_a_run * assumed.cores_a_gpu
    flop_per_s = gpus_a_run * assumed.gpu_tflop_per_s * 1e12 * assumed.training_utilisation
    policy_gb = assumed.parameters * (assumed.weight_bytes + assumed.optimiser_bytes) / 1e9

    memory = memory_of(assumed, gpus_a_run=gpus_a_run)
    side_by_side = min(trajectories / gpus_a_run, memory.trajectories_in_cache)
    rate = gpus_a_run * decode_tokens_per_s(assumed, side_by_side)
    # 2 operations a parameter and token forward, and 4 backward: arXiv 2001.08361, section 2.1.
    reading_s = 2 * assumed.parameters * read / flop_per_s
    training_s = 6 * assumed.parameters * (sampled + read) / flop_per_s
    longest_s = assumed.max_turns * assumed.max_turn_tokens / decode_tokens_per_s(assumed, 1)
    executing_s = snippets / (cores * assumed.snippets_per_s_a_core)
    rollout_s = assumed.overlap_factor * max(sampled / rate + reading_s, longest_s, executing_s)
    scoring_s = turns / (cores * assumed.scored_turns_per_s_a_core)
    weights_gb = assumed.parameters * assumed.weight_bytes / 1e9
    policy_s = (policy_gb + weights_gb) / assumed.store_gb_per_s
    stage_runs = assumed.shards * (2 * assumed.max_turns + 1) + 3
    orchestration_s = stage_runs * assumed.stage_run_s
    iteration_s = rollout_s + scoring_s + training_s + policy_s + orchestration_s

    tables_gb = (turns * assumed.bytes_a_turn + sampled * assumed.bytes_a_sampled_token) / 1e9
    tables_gb_a_day = runs * tables_gb * SECONDS_A_DAY / iteration_s
    policies_gb = runs * assumed.kept_policies * policy_gb
    usd_per_s = gpus_a_run * assumed.gpu_usd_per_hour / SECONDS_AN_HOUR
    usd_an_iteration = usd_per_s * iteration_s
    return Sizing(
        gpus=runs * gpus_a_run,
        runs=runs,
        rollout_s=rollout_s,
        scoring_s=scoring_s,
        training_s=training_s,
        policy_s=policy_s,
        orchestration_s=orchestration_s,
        iteration_s=iteration_s,
        sampled_tokens=sampled,
        tokens_per_s=runs * sampled / iteration_s,
        tables_gb_a_day=tables_gb_a_day,
        policies_gb=policies_gb,
        usd_an_iteration=usd_an_iteration,
        usd_a_million_tokens=1e6 * usd_an_iteration / sampled,
        usd_a_day=runs * usd_per_s * SECONDS_A_DAY,
        storage_usd_a_month=assumed.storage_usd_per_gb_month * (policies_gb + 30 * tables_gb_a_day),
        memory=memory,
    )


def decode_tokens_per_s(assumed: Assumptions, sequences: float) -> float:
    """Returns the tokens that one GPU samples for so many trajectories side by side.

    A step reads all weights once, and computes 2 operations a parameter for each trajectory: few
    trajectories wait for the memory, many for the arithmetic.
    """
    reading_s = assumed.parameters * assumed.sampled_weight_bytes / (assumed.gpu_tb_per_s * 1e12)
    flop_per_s = assumed.gpu_tflop_per_s * 1e12 * assumed.decode_utilisation
    return sequences / (reading_s + sequences * 2 * assumed.parameters / flop_per_s)


def memory_of(assumed: Assumptions, *, gpus_a_run: int) -> Memory:
    """Computes what one of the GPUs of a run holds while the policy is trained, in shards of FSDP.

    Args:
        assumed: What it rests on.
        gpus_a_run: GPUs that share weights, gradients and moments; the engine has a whole policy
            on each of them.

    Raises:
        ConfigError: If the engine's share has no room for one trajectory beside the weights.
    """
    shard = assumed.parameters / gpus_a_run / GIB
    trained_bytes = assumed.weight_bytes + assumed.gradient_bytes
    gathered = 2 * assumed.parameters / assumed.layers * trained_bytes / GIB
    # Keys and values, each of the same size.
    cached_bytes = 2 * assumed.layers * assumed.kv_size * assumed.sampled_weight_bytes
    length = assumed.prompt_tokens + assumed.turns * (
        assumed.turn_tokens + assumed.observation_tokens
    )
    share = assumed.engine_memory_share * assumed.gpu_memory_gib
    engine_weights = assumed.parameters * assumed.sampled_weight_bytes / GIB
    fitting = math.floor((share - engine_weights) * GIB / (cached_bytes * length))
    if fitting < 1:
        raise ConfigError(
            f"the engine's {share:.0f} GiB of a GPU have no room for a trajectory beside weights "
            f"of {engine_weights:.0f} GiB: raise engine_memory_share"
        )
    kept = assumed.activation_bytes * assumed.layers * assumed.hidden_size
    return Memory(
        weights_gib=shard * assumed.weight_bytes,
        gradients_gib=shard * assumed.gradient_bytes,
        optimiser_gib=shard * assumed.optimiser_bytes,
        gathered_gib=gathered if gpus_a_run > 1 else 0.0,
        activations_gib=assumed.micro_batch_tokens * kept / GIB,
        engine_weights_gib=engine_weights,
        engine_cache_gib=share - engine_weights,
        trajectories_in_cache=fitting,
    )
