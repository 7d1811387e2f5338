"""T5X's names that are others here, and what to type: told where one is met (docs/from_t5x.md has them all)."""

SAYS = {
    # macros
    "USE_CACHED_TASKS": "leave it out: tasks are read from their source, and what was tokenized is kept",
    "LOSS_NORMALIZING_FACTOR": "leave it out: losses are summed over target tokens, as with None there",
    "LABEL_SMOOTHING": "leave it out: it is 0",
    "PROMPT_REGEX": "leave it out: only the prompt is trained",
    "EMBEDDING_FILE": "leave it out: embeddings are those of INITIAL_CHECKPOINT_PATH",
    "CHECKPOINT_PATH": "type --gin.INITIAL_CHECKPOINT_PATH for the base, and eval --prompts FILE for a prompt",
    "EVAL_OUTPUT_DIR": "type --gin.MODEL_DIR, whose eval.jsonl they are added to",
    "INFER_OUTPUT_DIR": "type prompt-tuning infer --output FILE",
    # what gin configures there
    "create_learning_rate_scheduler": "type --gin.LEARNING_RATE, and --gin.SCHEDULE for another than the constant one",
    "Adafactor": "type --gin.WEIGHT_DECAY, --gin.STEP_ORIGIN, or a parameter of adafactor",
    "MultiOptimizer": "leave it out: only the prompt is trained",
    "RestoreCheckpointConfig": "leave it out: a base needs no prompt inside",
    "SaveCheckpointConfig": "type --gin.EVAL_PERIOD: each evaluation saves",
    "DatasetConfig": "type --gin.EVAL_SPLIT, --gin.EVAL_BATCH_SIZE, --gin.EVAL_FEATURE_LENGTHS or --gin.PACKING",
    "PjitPartitioner": "type --gin.MODEL_PARALLEL",
    "Trainer": "type --gin.ROWS_AT_ONCE for less memory",
    "SentencePieceVocabulary": "type --gin.VOCABULARY_FILE",
    "Prompt": "type --gin.PROMPT_LENGTH and --gin.PROMPT_INIT",
    "train": "the names of a run are in gin/defaults.gin",
    # flags
    "tfds_data_dir": "TensorFlow Datasets reads the variable TFDS_DATA_DIR",
}


def here(name: str) -> str | None:
    """What to do about a name of T5X, with modules in front of it or without; None if it is none."""
    says = SAYS.get(name.split(".")[-1])
    return says and f"{name} is T5X's; here {says}."
