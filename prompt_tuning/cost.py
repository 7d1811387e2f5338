"""What a T5 costs to run: floating-point operations of its matrix products, by the lengths it sees."""

from prompt_tuning.stack import T5Config


def forward_flops(config: T5Config, source: int, target: int) -> float:
    """Of one example with `source` encoder positions (prompt and input) and `target` decoder positions.

    A product of [a b] and [b c] counts 2abc. Softmax, norms and activations are not counted. A step that trains
    prompts costs about twice this (forward, and the gradient of what the weights see), one that trains everything
    three times.
    """
    width, joined = config.emb_dim, config.num_heads * config.head_dim
    projections = 4 * width * joined
    mlp = (len(config.mlp_activations) + 1) * width * config.mlp_dim
    encoder = source * (projections + mlp + 2 * source * joined)
    looking = target * (projections / 2 + 2 * source * joined) + source * projections / 2
    decoder = target * (projections + mlp + 2 * target * joined) + looking
    layers = config.num_encoder_layers * encoder + config.num_decoder_layers * decoder
    return 2.0 * (layers + target * width * config.vocab_size)
