"""Trains a tiny model in many ways over several processes, and says what became of each.

Processes are forked from the test's own, which has imported everything, so they cost little.

accelerate chooses FSDP and DeepSpeed only where there is an accelerator. On a CPU :func:`engine`
takes the environment that accelerate's own launcher makes of a configuration file, lets accelerate
see several GPUs while it chooses, and puts torch's collectives in the place of DeepSpeed's own for
shared memory, which would be compiled. All else is theirs.
"""

import contextlib
import faulthandler
import gc
import importlib
import itertools
import os
import socket
import sys
import tempfile
import traceback
from pathlib import Path

import torch
import torch.multiprocessing
import transformers
import yaml
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env
from peft import LoraConfig
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

import trueline
from tiny import pair_rows, tiny_llama, tiny_tokenizer
from trueline import AlignmentConfig, AlignmentTrainer

FILES = Path(trueline.__file__).parent / "accelerate_configs"
EFFECTIVE = 8
PATIENCE = 300


def run(cases, folder, processes=2):
    """What :func:`train` gives for each of the named cases, trained by so many processes; an
    exception stands for itself."""
    for tied, (seed, name) in itertools.product((True, False), enumerate(("policy", "reference"))):
        made = tiny_llama(seed=seed, num_key_value_heads=1, tie_word_embeddings=tied)
        made.save_pretrained(folder / ("tied" if tied else "untied") / name)
    if any(case.get("quantized") for case in cases.values()):  # whose kernels take blocks of 64
        tiny_llama(hidden_size=64, intermediate_size=128).save_pretrained(folder / "wide/policy")
    if processes == 1:
        return {name: _caught(case, folder / name, 1) for name, case in cases.items()}

    def work(rank):
        found = {name: _caught(case, folder / name, processes) for name, case in cases.items()}
        if rank == 0:
            torch.save(found, folder / "found.pt")

    spread(work, folder, processes)
    return torch.load(folder / "found.pt", weights_only=False)


def spread(work, folder, processes):
    """Do ``work(rank)`` in so many processes that know of each other; none may outlast PATIENCE."""
    folder.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = torch.multiprocessing.get_context("fork")
    ranks = [
        context.Process(target=_rank, args=(rank, processes, port, work, folder))
        for rank in range(processes)
    ]
    gc.freeze()  # what is there already is not looked through again in every process
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(PATIENCE)
    late = [process for process in ranks if process.is_alive()]
    for process in late:
        process.kill()
    logs = "\n".join((folder / f"rank{r}.log").read_text() for r in range(processes))
    assert not late, f"still running after {PATIENCE} seconds:\n{logs}"
    assert all(process.exitcode == 0 for process in ranks), logs


def _rank(rank, processes, port, work, folder):
    log = (folder / f"rank{rank}.log").open("w", buffering=1)
    os.dup2(log.fileno(), 1)
    os.dup2(log.fileno(), 2)
    sys.stdout = sys.stderr = log
    os.environ.update(
        RANK=str(rank),
        LOCAL_RANK=str(rank),
        WORLD_SIZE=str(processes),
        LOCAL_WORLD_SIZE=str(processes),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
    )
    faulthandler.dump_traceback_later(PATIENCE - 10, file=log)
    AcceleratorState._reset_state(reset_partial_state=True)
    try:
        work(rank)
        if torch.distributed.is_initialized():
            torch.distributed.barrier()
    except BaseException:
        traceback.print_exc()
        os._exit(1)
    os._exit(0)  # past pytest's own leave-taking


def _caught(case, folder, processes):
    try:
        return train(case, folder, processes)
    except Exception as error:
        traceback.print_exc()
        return error


@contextlib.contextmanager
def engine(name, changes):
    """accelerate as ``accelerate launch --config_file NAME.yaml`` would set it up with GPUs."""
    before = dict(os.environ)
    init = AcceleratorState.__init__

    def with_gpus(self, *args, **kwargs):
        shared = PartialState._shared_state
        if "ACCELERATE_USE_FSDP" in os.environ:
            shared["distributed_type"] = DistributedType.MULTI_GPU
        init(self, *args, **kwargs)

    AcceleratorState.__init__ = with_gpus
    os.environ.update(environment(name, changes))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()  # or what is loaded next is spread, too
        AcceleratorState.__init__ = init
        os.environ.clear()
        os.environ.update(before)


def environment(name, changes):
    """What accelerate's launcher tells its processes of a configuration file, in float32."""
    if name in ("one", "ddp"):
        return {}
    path = Path(name) if name.endswith(".yaml") else FILES / f"{name}.yaml"
    values = yaml.safe_load(path.read_text())
    kind = "fsdp_config" if "fsdp_config" in values else "deepspeed_config"
    values[kind].update(changes)
    values["mixed_precision"] = "no"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "accelerate.yaml"
        file.write_text(yaml.safe_dump(values))
        arguments = launch_command_parser().parse_args(["--config_file", str(file), "script.py"])
        arguments, *_ = _validate_launch_command(arguments)
    arguments.main_process_port = 0
    if kind == "fsdp_config":
        made = prepare_multi_gpu_env(arguments)
    else:
        importlib.import_module("deepspeed")
        sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
        arguments.deepspeed_fields_from_accelerate_config = ",".join(values[kind])
        _, made = prepare_deepspeed_cmd_env(arguments)
    made.pop("ACCELERATE_USE_CPU", None)
    return made


def train(case, folder, processes):
    """What became of one case: losses, weights, optimizer steps, the share that a process holds."""
    case = dict(case)
    name, changes = case.pop("engine", "one"), case.pop("changes", {})
    rows, evals, micro = case.pop("rows", 16), case.pop("evals", 0), case.pop("micro", 1)
    lora, resume = case.pop("lora", False), case.pop("resume", False)
    tied, reference = case.pop("tied", False), case.pop("reference", False)
    stop, quantized = case.pop("stop", None), case.pop("quantized", False)
    with engine(name, changes):
        args = AlignmentConfig(
            **{
                "output_dir": str(folder),
                "loss_type": "dpo",
                "per_device_train_batch_size": micro,
                "per_device_eval_batch_size": 2,
                "gradient_accumulation_steps": EFFECTIVE // micro // processes,
                "learning_rate": 1e-2,
                "adam_epsilon": 1e-4,  # or rounding shows where a gradient is almost nothing
                "max_steps": 4,
                "save_strategy": "no",
                "eval_strategy": "epoch" if evals else "no",
                "logging_steps": 1,
                "gradient_checkpointing": False,
                "disable_tqdm": True,
                "reference_cache": "none",
                "use_cpu": True,
                "report_to": "none",
                **case,
            },
        )
        load = transformers.AutoModelForCausalLM.from_pretrained
        models = folder.parent / ("wide" if quantized else "tied" if tied else "untied")
        options = {"quantization_config": four_bit()} if quantized else {}
        trainer = AlignmentTrainer(
            load(models / "policy", dtype=torch.float32, **options),
            load(models / "reference", dtype=torch.float32) if reference else None,
            args=args,
            train_dataset=pair_rows(rows),
            eval_dataset=pair_rows(evals) if evals else None,
            processing_class=tiny_tokenizer(),
            peft_config=adapter() if lora else None,
        )
        if stop:
            trainer.add_callback(StopAt(stop))
        start = whole_weights(trainer) if processes == 1 else None
        trainer.train(resume_from_checkpoint=resume or None)
        if args.save_strategy != "no":
            trainer.save_model()
        history = trainer.state.log_history
        found = {
            "start": start,
            "weights": whole_weights(trainer),
            **{
                key: [row[key] for row in history if key in row]
                for key in ("loss", "grad_norm", "eval_loss", "rewards/chosen")
            },
            "steps": optimizer_steps(trainer),
            "held": held(trainer),
        }
        trainer.accelerator.wait_for_everyone()
        trainer.accelerator.free_memory()
    return found


def four_bit():
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
    )


def adapter():
    torch.manual_seed(7)
    return LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")


def whole_weights(trainer):
    """The trained weights in one row, wherever they are."""
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    if any(hasattr(p, "ds_id") for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=None):
            return torch.cat([p.detach().flatten().clone() for p in parameters])
    whole = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in parameters]
    return torch.cat([p.detach().flatten().clone() for p in whole])


def optimizer_steps(trainer):
    if trainer.is_deepspeed_enabled:
        return trainer.deepspeed.global_steps
    states = trainer.optimizer.state.values()
    return {int(state["step"]) for state in states if "step" in state}.pop()


def held(trainer):
    """The share of the optimizer's states that this process holds."""
    parameters = [p for p in trainer.model.parameters() if p.requires_grad]
    whole = sum(getattr(p, "ds_numel", p.numel()) for p in parameters)
    optimizer = trainer.optimizer
    while hasattr(optimizer, "optimizer"):
        optimizer = optimizer.optimizer
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    local = [m.to_local() if hasattr(m, "to_local") else m for m in moments]
    return sum(m.numel() for m in local) / whole


class StopAt(trueline.training.trainer.TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step >= self.step
