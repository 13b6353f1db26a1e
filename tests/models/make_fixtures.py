"""Tiny random checkpoints of every family, with the logits that Transformers gives them.

    python -m tests.models.make_fixtures [DIR]

writes tests/models/fixtures/FAMILY/{config.json, model.safetensors, expected.npz}. Needs torch and
transformers (made with transformers 5.23), which reading the fixtures does not.
"""

import sys
from pathlib import Path

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # more only spin at this size
FIXTURES = Path(__file__).parent / "fixtures"
BATCH, LENGTH, PREFILL, PADDED = 2, 7, 4, 3

SHAPE = dict(
    vocab_size=48,
    hidden_size=24,
    intermediate_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=1024,
    bos_token_id=1,
    eos_token_id=2,
    pad_token_id=None,
    use_cache=True,
)
# Its three frequencies are one each of kept, mixed and stretched.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=10_000.0,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=256,
)
FAMILIES = {
    "llama": (transformers.LlamaConfig, dict(tie_word_embeddings=False, rms_norm_eps=1e-5)),
    "llama3": (transformers.LlamaConfig, dict(rope_parameters=LLAMA3, tie_word_embeddings=True)),
    "qwen2": (transformers.Qwen2Config, dict(tie_word_embeddings=True, bos_token_id=None)),
    "qwen3": (transformers.Qwen3Config, dict(tie_word_embeddings=False, head_dim=8)),
    "smollm3": (transformers.SmolLM3Config, dict(no_rope_layers=[1, 0])),
    "mistral": (transformers.MistralConfig, dict(sliding_window=None, head_dim=8)),
}


def random_model(family: str, seed: int):
    """A model with no parameter at its initial value: norms, biases and logits all count."""
    kind, changes = FAMILIES[family]
    config = kind(**SHAPE | changes)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if name.endswith("norm.weight"):
            parameter.data = 1 + 0.3 * noise
        elif name.endswith("bias"):
            parameter.data = 0.5 * noise
        else:
            parameter.data = noise * (1.5 * parameter.shape[-1] ** -0.5)
    return model.float().eval()


def random_inputs(model, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    config = model.config
    return {
        "tokens": rng.integers(0, config.vocab_size, (BATCH, LENGTH)),
        "gapped": np.array([[0, 1, 2, 40, 41, 42, 43], [5, 6, 7, 8, 9, 200, 201]]),
        "valid": np.arange(LENGTH) >= np.array([[PADDED], [0]]),
        "vectors": rng.normal(size=(BATCH, LENGTH, config.hidden_size)).astype(np.float32),
    }


@torch.no_grad()
def expected(model, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Logits [B, T, V] of each way to read the inputs."""
    tokens, gapped, valid, vectors = (torch.from_numpy(inputs[k]) for k in inputs)
    ones = torch.ones_like(tokens)  # without a mask, a jump in positions reads as a new document

    def logits(**kwargs):
        return model(**kwargs).logits.numpy()

    head = model(
        input_ids=tokens[:, :PREFILL],
        position_ids=gapped[:, :PREFILL],
        attention_mask=ones[:, :PREFILL],
        use_cache=True,
    )
    rest = [
        model(
            input_ids=tokens[:, t : t + 1],
            position_ids=gapped[:, t : t + 1],
            attention_mask=ones[:, : t + 1],
            past_key_values=head.past_key_values,
            use_cache=True,
        ).logits
        for t in range(PREFILL, LENGTH)
    ]
    return {
        "plain": logits(input_ids=tokens),
        "gap": logits(input_ids=tokens, position_ids=gapped, attention_mask=ones),
        "left_padding": logits(
            input_ids=tokens,
            position_ids=(valid.long().cumsum(-1) - 1).clamp(min=0),
            attention_mask=valid.long(),
        ),
        "vectors": logits(inputs_embeds=vectors),
        "cached": torch.cat([head.logits, *rest], dim=1).numpy(),
    }


def write(directory: Path, family: str, seed: int) -> None:
    """One checkpoint with its inputs and expected logits."""
    model = random_model(family, seed)
    model.save_pretrained(directory)
    (directory / "generation_config.json").unlink(missing_ok=True)
    inputs = random_inputs(model, seed)
    outputs = {f"logits_{name}": value for name, value in expected(model, inputs).items()}
    np.savez_compressed(directory / "expected.npz", **inputs, **outputs)


if __name__ == "__main__":
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else FIXTURES
    for index, name in enumerate(FAMILIES):
        write(root / name, name, seed=index)
