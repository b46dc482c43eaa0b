"""What others call a setting or an option, and what it is here: answers to guesses.

Everything that is to be typed stands in full, so that it can be copied, and so that a test can
run it.
"""

from collections.abc import Mapping

Answers = Mapping[str, str]

_RATES = "matrices; train.optimizer.table.rate, head.rate and vector.rate are those of the rest"

# What to type, an explanation, and the words that are used for it elsewhere.
_TRAIN: tuple[tuple[str, str, str], ...] = (
    ("--set train.optimizer.matrix.rate=0.01", _RATES, "lr learning_rate rate max_lr base_lr"),
    ("--set train.optimizer.table.rate=0.01", "the table", "embed_lr embedding_lr adam_lr"),
    ("--set train.batch=16", "sequences of a step", "batch batch_size bs train_batch_size"),
    (
        "--set train.accumulation=2",
        "micro-batches of a step",
        "grad_accum gradient_accumulation gradient_accumulation_steps accumulation accum "
        "micro_batches micro_batch_size device_batch_size per_device_train_batch_size",
    ),
    (
        "--set model.context=512",
        "tokens of a sequence",
        "context context_length context_size block_size seq_len seq_length sequence_length "
        "max_seq_len max_seq_length ctx n_ctx max_length window",
    ),
    (
        "--set model.depth=6",
        "layers",
        "depth layers layer n_layer n_layers num_layers num_hidden_layers",
    ),
    (
        "--set model.width=256",
        "channels of the stream; those within a feed layer: model.layer.feed.hidden",
        "width hidden hidden_size d_model n_embd dim n_embed model_dim embed_dim embedding_dim",
    ),
    (
        "--set model.layer.feed.hidden=1024",
        "",
        "ffn ffn_dim d_ff intermediate_size mlp_dim feed_forward_dim hidden_dim",
    ),
    (
        "--set model.layer.mixer.heads=4",
        "",
        "heads n_head n_heads num_heads num_attention_heads",
    ),
    (
        "--set model.layer.mixer.kv_heads=1",
        "",
        "kv_heads n_kv_head n_kv_heads num_kv_heads num_key_value_heads",
    ),
    ("--set model.layer.feed.act=relu2", "", "act activation hidden_act activation_function"),
    (
        "--set model.norm_eps=1e-5",
        "",
        "eps epsilon norm_epsilon norm_eps rms_norm_eps layer_norm_eps layer_norm_epsilon",
    ),
    (
        "--set model.layer.mixer.bias=qkv",
        "none, qkv or all; of the feed: model.layer.feed.bias",
        "bias attention_bias qkv_bias use_bias attn_bias",
    ),
    ("--set model.head.tied=true", "", "tied tie_embeddings tie_weights tie_word_embeddings"),
    (
        "--set tokenizer.vocab=2048 --set model.vocab=2048",
        "both, and the text is prepared with --vocab 2048",
        "vocab vocab_size n_vocab",
    ),
    (
        "--set train.length.count=1000",
        "steps; `segpt train` also takes --steps 1000",
        "steps max_steps iters max_iters n_iter num_iters iterations num_iterations n_steps "
        "num_steps train_steps total_steps num_train_steps",
    ),
    (
        "--set 'train.length={kind: seconds, count: 60}'",
        "`segpt train` also takes --seconds 60",
        "seconds max_time time time_limit max_seconds minutes hours",
    ),
    (
        "--set train.schedule.warmup=0.05",
        "a fraction of the run",
        "warmup warmup_steps warmup_iters warmup_ratio num_warmup_steps",
    ),
    (
        "--set train.schedule.warmdown=0.5",
        "a fraction of the run",
        "warmdown cooldown lr_decay lr_decay_iters decay_steps cooldown_iters",
    ),
    (
        "--set train.schedule.shape=cosine",
        "",
        "scheduler lr_scheduler lr_schedule lr_scheduler_type",
    ),
    ("--set train.schedule.floor=0.1", "a fraction of the rate", "min_lr final_lr min_lr_ratio"),
    (
        "--set train.optimizer.matrix.decay=0.1",
        "matrices; table, head and vector have their own",
        "weight_decay wd decay l2",
    ),
    (
        "--set train.optimizer.matrix=adam",
        "matrices, whose rule is muon or adam; the rest is under adam",
        "optimizer optim opt adam adamw muon",
    ),
    ("--set train.optimizer.matrix.momentum=0.9", "of muon", "momentum mu"),
    ("--set train.optimizer.table.beta1=0.9", "of adam", "beta1 adam_beta1 betas"),
    ("--set train.optimizer.table.beta2=0.95", "of adam", "beta2 adam_beta2"),
    (
        "--set train.clip=1.0",
        "the norm of the gradient",
        "clip grad_clip clip_grad max_grad_norm gradient_clip gradient_clip_val clip_norm",
    ),
    (
        "--set train.precision=bfloat16",
        "auto, float32 or bfloat16",
        "dtype precision amp fp16 bf16 fp32 half mixed_precision torch_dtype",
    ),
    ("--set train.compile=off", "auto, on, off or graphs", "compile no_compile torch_compile"),
    (
        "--set train.validate_every=100",
        "steps",
        "eval_every eval_interval eval_steps val_every val_interval validate_every "
        "val_check_interval eval_freq evaluation_interval",
    ),
    ("--set train.validate_tokens=65536", "", "eval_iters eval_tokens val_tokens eval_batches"),
    (
        "--set train.save_every=100",
        "steps",
        "save_every save_steps save_interval checkpoint_every ckpt_every save_freq",
    ),
    ("--set train.log_every=10", "steps", "log_every log_interval logging_steps log_freq"),
    ("--set train.keep=6", "checkpoints", "keep save_total_limit keep_last max_checkpoints"),
    (
        "--set train.keep_best=true",
        "the checkpoint of the best validation stays",
        "patience early_stopping early_stop keep_best save_best",
    ),
    ("--set train.average.decay=0.99", "", "ema ema_decay ema_beta swa average"),
    ("--set train.z_loss=0.0001", "", "z_loss zloss"),
    ("--set train.label_smoothing=0.1", "", "label_smoothing smoothing"),
    ("--set train.recompute=-1", "all visits", "gradient_checkpointing grad_checkpointing"),
    ("--set train.seed=2", "`segpt train` also takes --seed 2", "seed random_seed manual_seed"),
)

_SCORE: tuple[tuple[str, str, str], ...] = (
    (
        "--ttt sgd --set adapt.rate=0.1",
        "what test-time training takes",
        "lr learning_rate rate ttt_lr",
    ),
    ("--ttt sgd --set adapt.epochs=2", "passes of each chunk", "epochs n_epochs num_epochs"),
    ("--ttt sgd --set adapt.chunk=256", "targets", "chunk chunk_size ttt_chunk"),
    ("--ttt sgd --set adapt.momentum=0.9", "", "momentum"),
    ("--ttt low_rank --set adapt.rank=4", "", "rank lora_rank lora_r r"),
    ("--ttt low_rank --set adapt.alpha=16.0", "", "alpha lora_alpha"),
    ("--set score.batch=16", "windows or documents at once", "batch batch_size bs"),
)

_QUANTIZE: tuple[tuple[str, str, str], ...] = (
    (
        "--set quantize.calibration_tokens=65536",
        "",
        "calibration calib calibration_tokens n_samples nsamples calib_samples",
    ),
    ("--set quantize.damping=0.01", "", "damping damp percdamp damp_percent"),
    ("--set quantize.report_tokens=65536", "", "eval_tokens report_tokens"),
    ("--set quantize.tune_steps=100", "", "tune tune_steps iters steps"),
    ("--set quantize.states=8", "4, 8 or 16", "states trellis_states"),
)

# What there is none of, and why.
_NONE: Mapping[str, str] = {
    "dropout attention_dropout attn_pdrop resid_pdrop drop": (
        "there is no dropout, because runs of one or few epochs do not overfit; weight decay is "
        "--set train.optimizer.matrix.decay=0.1"
    ),
    "epochs n_epochs num_epochs num_train_epochs max_epochs epoch": (
        "a run is so many steps and not so many epochs: --set train.length.count=1000. How many "
        "blocks an epoch has is said when a run begins"
    ),
    "wandb tensorboard tb mlflow comet report_to logger log_with wandb_project use_wandb": (
        "nothing is sent anywhere: metrics.jsonl in the directory of the run holds what is "
        "logged, and `segpt report` draws it"
    ),
    "workers num_workers n_workers dataloader_num_workers loader_workers": (
        "there are no loader processes, because the tokens are read from files mapped to memory"
    ),
    "gpus n_gpus num_gpus ngpus nproc nproc_per_node world_size processes devices ddp fsdp": (
        "several processes are started by torchrun: torchrun --nproc-per-node 2 -m segpt train"
    ),
    "quiet q silent debug no_progress": (
        "progress goes to stderr and results to stdout: 2>/dev/null leaves only the results"
    ),
    "threads n_threads num_threads": (
        "the environment says how many threads there are: OMP_NUM_THREADS=2 segpt ..."
    ),
    "early_exit speculative beam num_beams beam_size": "there is no such search or shortcut",
}

# Names of options here, and what others call them.
_OPTIONS: Mapping[str, str] = {
    "out": "output output_dir output_path output_file o outdir out_dir save_dir save_path save "
    "save_to dest destination run_dir log_dir logdir checkpoint_dir",
    "data": "dataset data_dir data_path train_data train_file dataset_path input_data corpus",
    "device": "gpu cuda use_cuda use_gpu accelerator cpu no_cuda gpu_id",
    "precision": "dtype amp fp16 bf16 fp32 half mixed_precision torch_dtype",
    "steps": "max_steps iters max_iters n_iter num_iters iterations num_iterations n_steps "
    "num_steps train_steps total_steps num_train_steps",
    "seconds": "max_time time time_limit max_seconds time_budget",
    "recipe": "config cfg conf config_file config_path yaml preset c",
    "init": "pretrained init_from load checkpoint ckpt from_checkpoint finetune load_weights "
    "weights init_weights from_pretrained",
    "resume": "resume_from continue resume_from_checkpoint restart",
    "dry-run": "plan estimate check simulate n",
    "seed": "random_seed manual_seed",
    "tokens": "max_tokens max_new_tokens num_tokens n_tokens length max_length n_predict",
    "temperature": "temp",
    "batch": "batch_size bs eval_batch_size",
    "context": "context_length context_size block_size seq_len seq_length sequence_length "
    "max_seq_len max_seq_length ctx n_ctx window window_size",
    "vocab": "vocab_size n_vocab pieces",
    "validation": "val valid dev val_data val_file validation_file eval_data test",
    "held-out": "val_ratio val_split val_fraction validation_split test_size eval_split",
    "tokenizer": "tokenizer_path tokenizer_file sp_model bpe spm",
    "field": "text_field column text_column key json_key",
    "fewshot": "num_fewshot shots n_shot num_shots few_shot",
    "tasks": "task benchmarks benchmark",
    "limit": "max_examples num_examples max_samples timeout",
    "bits": "nbits wbits n_bits w_bits weight_bits bit",
    "budget": "size max_size max_bytes size_limit bytes target_size",
    "method": "algorithm algo quant_method quantizer",
    "json": "json_output as_json output_json",
    "ttt": "adapt policy test_time_training tta lora",
    "stride": "window_stride",
    "force": "overwrite replace f yes y",
    "name": "record_name title",
    "author": "authors submitter",
    "dir": "directory leaderboard_dir",
    "prove": "verify proof",
    "verbose": "v details long",
}


def bare(word: str) -> str:
    """A word without what spellings differ in: ``--Batch-Size`` and ``batch_size`` are one."""
    return word.lower().replace("-", "").replace("_", "")


def _answers(rows: tuple[tuple[str, str, str], ...]) -> dict[str, str]:
    return {
        bare(word): f"{remedy} ({why})" if why else remedy
        for remedy, why, words in rows
        for word in words.split()
    }


def _spread(table: Mapping[str, str]) -> dict[str, str]:
    return {bare(word): why for words, why in table.items() for word in words.split()}


SETTINGS: Mapping[str, Answers] = {
    "train": _answers(_TRAIN),
    "score": _answers(_SCORE),
    "quantize": _answers(_QUANTIZE),
}
NONE: Answers = _spread(_NONE)
OPTIONS: Mapping[str, frozenset[str]] = {
    ours: frozenset(map(bare, words.split())) for ours, words in _OPTIONS.items()
}
REMEDIES: Mapping[str, tuple[str, ...]] = {
    "train": tuple(row[0] for row in _TRAIN),
    "score": tuple(row[0] for row in _SCORE),
    "quantize": tuple(row[0] for row in _QUANTIZE),
}


def answer(word: str, area: str = "train") -> str | None:
    """What to type for a setting that is called ``word`` elsewhere, or why there is none.

    Args:
        word: an option or a key, in any spelling.
        area: ``train``, ``score`` or ``quantize``: whose settings are looked at.
    """
    setting = SETTINGS[area].get(bare(word))
    if setting is not None:
        return f"write {setting}"
    return NONE.get(bare(word))
