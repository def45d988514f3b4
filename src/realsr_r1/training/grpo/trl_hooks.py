"""Every place where training leans on ways of TRL and transformers that they don't promise to keep.

`HOOKS` says of each what TRL gives, what it expects back, and what of ours relies on it, as read in
the source of TRL 1.16.0 with transformers 5.23 (older versions were not read; `requirements.txt`
pins TRL). `check_hooks` compares the installed TRL with them when a trainer is made, and fails in
one line that names the hooks an update broke. Below stand the functions through which the trainer
uses what TRL has no official way for.

To go to another TRL: install it, run `tests/training/grpo`, mend what is named, set `WRITTEN_FOR`.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pkgutil import resolve_name
from types import CodeType
from typing import Any

import torch
import transformers
import trl.trainer.grpo_trainer
import trl.trainer.utils
from transformers import PreTrainedModel

from realsr_r1.core.errors import UserError
from realsr_r1.models import load_policy

WRITTEN_FOR = "1.16.0"  # of TRL
TRAINER = "trl.trainer.grpo_trainer:GRPOTrainer"


@dataclass(frozen=True)
class Need:
    """What must be there for a hook: the function or class at `where`, written `module:name`.

    `takes`: parameters it must have. `says`: names and string constants that must be in its code,
    such as the keys of a dict that it fills.
    """

    where: str
    takes: tuple[str, ...] = ()
    says: tuple[str, ...] = ()

    def problem(self) -> str | None:
        """What the installed version lacks, or None."""
        try:
            found = resolve_name(self.where)
            parameters = inspect.signature(found).parameters
            words = _words(inspect.unwrap(found).__code__) if self.says else ()
        except (ImportError, AttributeError, TypeError, ValueError):
            return f"there is no function {self.where}"
        for kind, wanted, there in (("takes", self.takes, parameters), ("knows", self.says, words)):
            missing = [name for name in wanted if name not in there]
            if missing:
                return f"{self.where} {kind} no {missing[0]}"
        return None


@dataclass(frozen=True)
class Hook:
    """A contract: what TRL gives and expects back, what of ours relies on it, and its needs."""

    name: str
    gives: str
    expects: str
    ours: str
    needs: tuple[Need, ...]


HOOKS = (
    Hook("rollout_func",
         gives="Calls rollout_func(prompts, trainer) for this process' part of a rollout: the column "
               "`prompt` alone, each value G times, neighbours. G is num_generations, in evaluation "
               "(model.training is False) num_generations_eval.",
         expects="A dict with prompt_ids, completion_ids (lists of lists of ids, the end-of-turn token "
                 "included) and logprobs.",
         ours="ChainGRPOTrainer.rollout: completions come from our engine.",
         needs=(Need(f"{TRAINER}.__init__",
                     takes=("rollout_func",),
                     says=("num_generations", "num_generations_eval")),
                Need(f"{TRAINER}._generate", says=("rollout_func", "prompt_ids", "completion_ids")),
                Need(f"{TRAINER}._get_train_sampler",
                     says=("RepeatSampler", "mini_repeat_count", "num_generations")))),
    Hook("logprobs",
         gives="Pads rollout_func's logprobs at the right and passes them on to the loss as "
               "sampling_per_token_logps, (B, T). Without vLLM they are in no loss, unless "
               "--off_policy_mask_threshold is set.",
         expects="log q of each token, lists as long as the completions.",
         ours="ChainGRPOTrainer._compute_loss logs sampling/log_ratio from them.",
         needs=(Need(f"{TRAINER}._generate", says=("logprobs",)),
                Need(f"{TRAINER}._generate_and_score_completions", says=("sampling_per_token_logps",)))),
    Hook("extra fields",
         gives="Whatever else rollout_func returns is put into the records, which become the rewards' "
               "keyword arguments. A column `image` or `images` of the data set would switch TRL's vision "
               "path on; an extra field of that name comes too late to do so.",
         expects="Python lists, one value a completion.",
         ours="The decoded `images` reach the rewards, the samples and the log of rewards.",
         needs=(Need(f"{TRAINER}._generate", says=("extra_fields",)),
                Need(f"{TRAINER}._generate_and_score_completions",
                     says=("extra_fields", "_calculate_rewards")))),
    Hook("env_mask",
         gives="Takes the field env_mask out of what rollout_func returns and calls it tool_mask: (B, T), "
               "padded with 1. A token counts in loss, metrics and completion lengths where completion_mask "
               "* tool_mask is 1.",
         expects="Lists of 0 and 1, as long as the completions.",
         ours="Tokens that the grammar forced are not learned from (objective.token_weights).",
         needs=(Need(f"{TRAINER}._generate", says=("env_mask", "tool_mask")),
                Need(f"{TRAINER}._generate_and_score_completions", says=("tool_mask", "completion_mask")),
                Need(f"{TRAINER}._compute_loss", says=("tool_mask", "completion_mask")))),
    Hook("batch_decode",
         gives="Rewards get processing_class.batch_decode(completion_ids, skip_special_tokens=True) as "
               "`completions`.",
         expects="A tokenizer; a ProcessorMixin would switch the vision path on.",
         ours="training.rendering.RenderingTokenizer writes an image as <|image|>.",
         needs=(Need(f"{TRAINER}._generate", says=("batch_decode", "processing_class")),)),
    Hook("eos_token_id",
         gives="A completion whose last token is in model.generation_config.eos_token_id ended; others "
               "count as cut.",
         expects="The ids, set before the trainer is made.",
         ours="ChainGRPOTrainer sets the end of turn: clipped_ratio and --mask_truncated_completions depend "
              "on it.",
         needs=(Need(f"{TRAINER}.__init__", says=("generation_config", "eos_token_id", "eos_token_ids")),
                Need(f"{TRAINER}._generate", says=("eos_token_ids",)))),
    Hook("_calculate_rewards",
         gives="Called once by _generate_and_score_completions with this process' records, prompts, texts "
               "and ids.",
         expects="Rewards of all processes, (N, K), NaN for no score; this process' rows begin at "
                 "process_index times its number.",
         ours="Samples and the log of rewards are written there; group_advantages computes from what it "
              "returns.",
         needs=(Need(f"{TRAINER}._calculate_rewards",
                     takes=("inputs", "prompts", "completions", "completion_ids_list"),
                     says=("gather", "reward_funcs", "log_extra", "trainer_state")),
                Need(f"{TRAINER}.__init__", says=("reward_weights", "reward_func_names")))),
    Hook("_generate_and_score_completions",
         gives="Called once a rollout by _prepare_inputs with the records; makes completions, rewards and "
               "advantages.",
         expects="A dict of tensors with one row a completion, `advantages` (B,) or, as its comment says "
                 "for subclasses, (B, T).",
         ours="The advantages in it are replaced by group_advantages' (frac_reward_zero_std and the "
              "advantages in --log_completions' table stay TRL's), the numbers of the tokens' sections are "
              "added for the loss to log by, and with share_prompts it is cut into microbatches.",
         needs=(Need(f"{TRAINER}._generate_and_score_completions",
                     takes=("inputs",),
                     says=("advantages", "_calculate_rewards", "completion_ids", "prompt_mask",
                           "num_items_in_batch")),
                Need(f"{TRAINER}._compute_loss", says=("advantages", "unsqueeze")))),
    Hook("_prepare_inputs",
         gives="In training: shuffles the rows of a rollout (shuffle_sequence_dict), cuts them into "
               "steps_per_generation microbatches (split_tensor_dict), keeps them in _buffered_inputs and "
               "returns one a call. In evaluation: all rows.",
         expects="A dict of tensors and lists of equal length; entries of no dimension are copied to every "
                 "microbatch.",
         ours="With share_prompts we give it microbatches for rows, so that groups stay whole, and unpack "
              "what it returns.",
         needs=(Need(f"{TRAINER}._prepare_inputs",
                     takes=("generation_batch",),
                     says=("_generate_and_score_completions", "shuffle_sequence_dict", "split_tensor_dict",
                           "steps_per_generation", "_buffered_inputs")),)),
    Hook("split_tensor_dict",
         gives="A dict of tensors (or lists) cut along the first dimension into equal parts, in order.",
         expects="The number of parts.",
         ours="ChainGRPOTrainer cuts a rollout into microbatches as TRL would.",
         needs=(Need("trl.trainer.utils:split_tensor_dict",
                     takes=("tensor_dict", "num_chunks"),
                     says=("list", "ndim")),)),
    Hook("_get_per_token_logps_and_entropies",
         gives="Called for the loss, for pi_old and for the reference, with prompts padded at the left and "
               "completions at the right; logits_to_keep is the length of the completions. For us the other "
               "arguments are None or False.",
         expects="log pi of the completions' tokens (B, T), their entropies or None, None.",
         ours="Overridden to compute each prompt once for its completions.",
         needs=(Need(f"{TRAINER}._get_per_token_logps_and_entropies",
                     takes=("model", "input_ids", "attention_mask", "logits_to_keep", "batch_size",
                            "compute_entropy")),
                Need(f"{TRAINER}._compute_loss",
                     says=("_get_per_token_logps_and_entropies", "compute_entropy")))),
    Hook("fused_lm_head",
         gives="add_fused_lm_head replaces the forward of policy and reference: with fused_lm_head=True it "
               "returns log_probs and entropy of the labels, at the trainer's temperature, in chunks, "
               "without logits.",
         expects="labels, or shift_labels (B, T) that stand at the place that predicts them; -100 is not "
                 "scored. Other arguments go on to model.base_model, whose last_hidden_state must have the "
                 "labels' shape.",
         ours="shared_prompts reaches the layers this way, and shift_labels are the completions.",
         needs=(Need("trl.trainer.utils:add_fused_lm_head",
                     says=("fused_lm_head", "shift_labels", "base_model", "last_hidden_state",
                           "temperature")),
                Need("trl.trainer.utils:FusedCausalLMOutput", takes=("log_probs", "entropy")),
                Need(f"{TRAINER}.__init__", says=("add_fused_lm_head", "log_probs", "entropy")))),
    Hook("_compute_loss",
         gives="Called with the model and a microbatch: scores it, with entropies, computes the loss with "
               "every option, logs ratios and entropy.",
         expects="The loss, a scalar, divided by the microbatches of an update.",
         ours="Overridden to log; the loss is TRL's, for it can't be had in parts. objective.policy_loss is "
              "its formula.",
         needs=(Need(f"{TRAINER}.compute_loss", says=("_compute_loss",)),
                Need(f"{TRAINER}._compute_loss",
                     takes=("model", "inputs"),
                     says=("old_per_token_logps", "ref_per_token_logps",
                           "current_gradient_accumulation_steps")))),
    Hook("_metrics",
         gives="_metrics['train' or 'eval'][name] is a list; TRL's log writes each list's mean, and empties "
               "it.",
         expects="Floats, the same names on all processes.",
         ours="What training.grpo.statistics computes and sampling/log_ratio are logged there.",
         needs=(Need(f"{TRAINER}.__init__", says=("_metrics", "train", "eval")),
                Need(f"{TRAINER}.log", says=("_metrics",)))),
    Hook("_logs",
         gives="_logs['prompt'] holds the last rollout's prompts; log prints and saves them with "
               "--log_completions.",
         expects="Texts or conversations.",
         ours="ChainGRPOTrainer.log turns our prompts, which are ids, into text first.",
         needs=(Need(f"{TRAINER}.log", takes=("logs", "start_time"), says=("_logs", "prompt")),
                Need(f"{TRAINER}.__init__", says=("_logs", "prompt")))),
    Hook("create_model_from_path",
         gives="GRPOTrainer's constructor calls it for the reference policy (beta > 0, no adapters), by its "
               "name in TRL's module.",
         expects="The loaded policy; it would take the class that the folder's config names.",
         ours="reference_like puts our loader in its place: published folders need it.",
         needs=(Need("trl.trainer.grpo_trainer:create_model_from_path"),
                Need(f"{TRAINER}.__init__", says=("create_model_from_path", "ref_model")))),
    Hook("unwrap_model_for_generation",
         gives="A block with the bare policy: gathered under ZeRO-3 (all processes must enter), no gradient "
               "checkpointing.",
         expects="A normal end: it has no try/finally, so an exception would leave the policy without its "
                 "hooks.",
         ours="training.whole_policy, for rollouts and for the cold start's samples.",
         needs=(Need("trl.models.utils:unwrap_model_for_generation",
                     takes=("model", "accelerator", "gradient_checkpointing_kwargs")),
                Need("transformers.trainer:Trainer.__init__", says=("model_wrapped", "accelerator")))),
    Hook("global_then_local_main_first",
         gives="A block that one process of a job enters first, then one of each machine, then the others.",
         expects="Nothing.",
         ours="realsr_r1.grpo loads the experts in it, for they may be downloaded.",
         needs=(Need("trl.trainer.utils:global_then_local_main_first"),)),
    Hook("create_model_card",
         gives="_save_checkpoint calls self.create_model_card(model_name=...) for a card that names a hub "
               "model.",
         expects="Nothing.",
         ours="Overridden to write none.",
         needs=(Need(f"{TRAINER}._save_checkpoint", says=("create_model_card",)),)),
    Hook("_run_epoch",
         gives="transformers' loop loads a checkpoint, calls on_train_begin, and then for every epoch "
               "_run_epoch: for every microbatch training_step, for every step _get_grad_norm, on_step_end "
               "and _maybe_log_save_evaluate, which calls _save_checkpoint and on_save.",
         expects="What Trainer's own methods return.",
         ours="training.steady.SteadyTrainer: no step beyond the last, no checkpoint that isn't finite, an "
              "end when it is told to stop, a new optimizer with --reset_optimizer.",
         needs=(Need("transformers.trainer:Trainer._inner_training_loop",
                     says=("_prepare_for_training", "on_train_begin", "_run_epoch", "should_training_stop")),
                Need("transformers.trainer:Trainer._prepare_for_training",
                     takes=("max_steps", "train_dataloader", "resume_from_checkpoint"),
                     says=("create_scheduler",)),
                Need("transformers.trainer:Trainer._run_epoch",
                     says=("training_step", "_get_grad_norm", "on_step_end", "_maybe_log_save_evaluate",
                           "on_epoch_end")),
                Need("transformers.trainer:Trainer._maybe_log_save_evaluate",
                     says=("should_save", "_save_checkpoint", "on_save")),
                Need("transformers.trainer:Trainer.train", says=("_load_from_checkpoint",)))),
    Hook("log_history",
         gives="Trainer.log, on all processes, adds each log to state.log_history, which checkpoints hold, "
               "and then calls on_log. What on_log asks for by control.should_save and should_training_stop "
               "is done after that step.",
         expects="Nothing.",
         ours="stopping.StopGuard reads the log, and ends a run with a checkpoint.",
         needs=(Need("transformers.trainer:Trainer.log", says=("log_history", "on_log")),
                Need("transformers.trainer:Trainer._maybe_log_save_evaluate", says=("log", "should_save")))),
    Hook("callback_handler",
         gives="transformers keeps the callbacks in use in trainer.callback_handler.callbacks.",
         expects="Nothing.",
         ours="Samples are shown to wandb's or TensorBoard's callback.",
         needs=(Need("transformers.trainer:Trainer.__init__", says=("callback_handler",)),
                Need("transformers.trainer_callback:CallbackHandler.__init__", says=("callbacks",)))),
)


def check_hooks() -> None:
    """Compare the installed TRL with the contracts above; takes milliseconds and no random numbers.

    Raises `UserError`: one line with the two versions, each broken hook, and what the first lacks.
    """
    problems = [(hook.name, need.problem()) for hook in HOOKS for need in hook.needs]
    broken = {name: problem for name, problem in reversed(problems) if problem}
    if broken:
        names = [hook.name for hook in HOOKS if hook.name in broken]
        raise UserError(
            f"TRL {trl.__version__} (with transformers {transformers.__version__}) has changed what training "
            f"relies on: {', '.join(names)} ({broken[names[0]]}); install trl=={WRITTEN_FOR}, which this was "
            "written for, or mend realsr_r1/training/grpo/trl_hooks.py")


def _words(code: CodeType) -> set[str]:
    """Names and string constants in a function's code, those of functions inside it included."""
    words = {*code.co_names, *code.co_varnames, *code.co_cellvars, *code.co_freevars}
    constants = [*code.co_consts]
    while constants:
        constant = constants.pop()
        if isinstance(constant, str):
            words.add(constant)
        elif isinstance(constant, (tuple, frozenset)):
            constants += constant
        elif isinstance(constant, CodeType):
            words |= _words(constant)
    return words


@contextmanager
def result_of(trainer: Any, method: str) -> Iterator[list[Any]]:
    """Inside, TRL calls `trainer.method` in a method of its own; the list then has its result.

    There is no other way to two values: the rewards of `_calculate_rewards`, and the
    log-probabilities that the loss is computed from. Raises `UserError` when nothing was called.
    """
    call, results, before = getattr(trainer, method), [], vars(trainer).get(method)

    def keeping(*args: Any, **kwargs: Any) -> Any:
        results[:] = [call(*args, **kwargs)]
        return results[0]

    setattr(trainer, method, keeping)  # on the object, before the class's
    try:
        yield results
    finally:
        delattr(trainer, method)
        if before is not None:
            setattr(trainer, method, before)  # somebody else's, around this one
    if not results:
        raise UserError(f"TRL {trl.__version__} does not call the hook {method} where TRL {WRITTEN_FOR} did")


def microbatches(batch: dict[str, Any], count: int) -> list[dict[str, Any]]:
    """A rollout's rows cut into `count` microbatches, as TRL cuts them."""
    return trl.trainer.utils.split_tensor_dict(batch, count)


def as_rows(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """Microbatches in the form of rows: TRL shuffles and cuts rows next, and leaves these whole."""
    return {"number": torch.arange(len(chunks)), "chunk": chunks}


def from_row(inputs: dict[str, Any]) -> dict[str, Any]:
    """The microbatch in what TRL made of `as_rows`; anything else as it is."""
    return inputs["chunk"][0] if "chunk" in inputs else inputs


@contextmanager
def reference_like(policy: PreTrainedModel) -> Iterator[None]:
    """Inside, a GRPOTrainer that is made loads its reference as the policy was, from its folder.

    TRL would take the class that the folder's config names. In published folders that is
    transformers' own, which refuses their norms.
    """
    def load(path: str, **_: Any) -> PreTrainedModel:
        return load_policy(path, dtype=policy.dtype, attn_implementation=policy.config._attn_implementation)

    theirs = trl.trainer.grpo_trainer.create_model_from_path
    trl.trainer.grpo_trainer.create_model_from_path = load
    try:
        yield
    finally:
        trl.trainer.grpo_trainer.create_model_from_path = theirs
