"""The names that the papers' own code has for these tasks, looked up and never registered.

Nothing here can clash with an installed `t5` or `prompt_tuning` of the authors: a name becomes one of this project's
only where this project is asked for it.
"""

import re

_EXAMPLES = r"(?:_examples)?"
# A name, without mt5_/byt5_, and what it is called here; {end} is "" for taskless_ names and "_prefixed" for others.
_RULES = [
    (r"super_glue_wsc_and_dev_v102_simple", "superglue_wsc{end}"),
    (r"super_glue_wsc_v102_simple_(?:train|eval)", "superglue_wsc{end}"),
    (r"super_glue_(?P<set>\w+?)_v102", "superglue_{set}{end}"),
    (r"super_glue_v102_proportional", "superglue_and_dpr{end}"),
    (r"dpr_v001_simple", "superglue_dpr{end}"),
    (r"glue_(?P<a>mrpc|qqp)_from_(?P<b>mrpc|qqp)_zeroshot_v002", "glue_{a}_from_{b}{end}"),
    (r"glue_(?P<a>mrpc|qqp)_from_(?P<b>mrpc|qqp)_v002", "glue_{a}_by_{b}{end}"),
    (r"glue_mnli_and_dev_(?:v002|v200)", "glue_mnli_and_dev{end}"),
    (r"glue_v002_proportional", "glue{end}"),
    (r"glue_(?P<set>\w+?)_(?:v002|v200)", "glue_{set}{end}"),
    (r"spot_glue_mnli_and_dev_v200", "glue_mnli_and_dev_prefixed"),
    (r"spot_glue_mnli_train_v200", "glue_mnli_prefixed"),
    (r"spot_glue_mnli_validation_(?P<set>matched|mismatched)_v200", "glue_mnli_{set}_prefixed"),
    (r"spot_glue_(?P<set>\w+?)_v200", "glue_{set}_prefixed"),
    (r"squad_v010_allanswers", "squad"),
    (r"squad_to_(?P<set>\w+?)", "squad_to_{set}"),
    (r"mrqa_(?P<set>\w+?)_v100", "mrqa_{set}"),
    (r"spot_mrqa_(?P<set>\w+?)_v100", "mrqa_{set}_prefixed"),
    (r"spot_(?P<set>anli_r[123]|doc_nli|snli)_v\d+", "nli_{set}_prefixed"),
    (r"(?P<set>xsum|cnn_dailymail)_v\d+", "summarize_{set}"),
    (r"spot_(?P<set>\w+?)_v\d+", "summarize_{set}_prefixed"),
    (r"c4_v220_(?P<set>prefix_lm|span_corruption)", "c4_{set}"),
]
REFERENCE_NAMES = [(re.compile(rule + _EXAMPLES), own) for rule, own in _RULES]


def own_name(name: str) -> str:
    """This project's name for a task or mixture of the papers' code; the name itself where there is none.

    The task is the same data, text and metric; where TFDS has newer versions of a set than the name says, it is the
    version this project pins.
    """
    bare = re.sub(r"^(?:mt5_|byt5_)", "", name)
    taskless = bare.startswith("taskless_")
    bare = bare.removeprefix("taskless_")
    for rule, own in REFERENCE_NAMES:
        if match := rule.fullmatch(bare):
            return own.format(end="" if taskless else "_prefixed", **match.groupdict())
    return name
