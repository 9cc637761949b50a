from __future__ import annotations

from pathlib import Path

import pytest
import torch

from influcoder.errors import ConfigError, DataError
from influcoder.examples import Example, Turn
from influcoder.influence.decoder import (
    Decoder,
    DecoderConfig,
    FreshDecoder,
    fingerprint_model,
    load_decoder,
    make_fresh_decoder,
    randomise_weights,
)
from influcoder.influence.tokens import TokenizedRow, pad, row_losses, token_batches, tokenize
from influcoder.program import parse_config
from teacher.config import TeacherConfig
from tests.influcoder.tiny_decoders import ROWS, SMALL, example, fresh_decoder, grouped_decoder

CPU = torch.device("cpu")


def parts(decoder: Decoder, row: TokenizedRow) -> tuple[str, str]:
    """Return the text before the loss and the text under it."""
    ids = list(row.input_ids)
    return str(decoder.tokenizer.decode(ids[: row.response_start])), str(decoder.tokenizer.decode(ids[row.response_start :]))


def test_loss_is_on_the_response_and_its_end_under_a_chat_template() -> None:
    decoder = fresh_decoder()
    (row,) = tokenize([example("sum", "What is 2 plus 3?", "It is 5.")], decoder)
    assert parts(decoder, row) == ("<user>What is 2 plus 3?<assistant>", "It is 5.<eos>")


def test_earlier_turns_of_the_assistant_stand_before_the_loss() -> None:
    decoder = fresh_decoder()
    turns = (Turn(role="user", content="Hello"), Turn(role="assistant", content="Hi."), Turn(role="user", content="Cold?"))
    (row,) = tokenize([Example(id="talk", context=turns, response="Yes.")], decoder)
    assert parts(decoder, row) == ("<user>Hello<assistant>Hi.<eos><user>Cold?<assistant>", "Yes.<eos>")


def test_a_template_that_rewrites_earlier_turns_keeps_the_response() -> None:
    decoder = fresh_decoder()
    decoder.tokenizer.chat_template = (
        "{% if add_generation_prompt %}OPEN{% for m in messages %}{{ m['content'] }}{% endfor %}{% else %}CLOSED{% endif %}"
    )
    (row,) = tokenize([example("ice", "Is ice cold?", "Yes.")], decoder)
    assert parts(decoder, row) == ("OPENIs ice cold?", "Yes.<eos>")


def test_without_a_template_the_prompt_stands_on_its_own_line() -> None:
    decoder = fresh_decoder()
    decoder.tokenizer.chat_template = None
    (row,) = tokenize([example("ice", "Is ice cold?", "Yes.")], decoder)
    assert parts(decoder, row) == ("Is ice cold?\n", "Yes.<eos>")


def test_plain_text_is_all_response_after_one_start_token() -> None:
    decoder = fresh_decoder()
    (row,) = tokenize([Example(id="plain", context=(), response="Snow fell.")], decoder)
    assert row.response_start == 1
    assert parts(decoder, row) == ("<eos>", "Snow fell.<eos>")


def test_overflow_names_the_row_its_length_and_what_to_lower() -> None:
    decoder = fresh_decoder()
    with pytest.raises(DataError) as caught:
        tokenize([*ROWS, example("long", "x" * 300, "y")], decoder)
    message = str(caught.value)
    assert "'long'" in message and "at most the decoder's 128" in message and "text.max_prompt_chars" in message
    assert "\n" not in message


def test_pad_puts_zeros_and_masks_on_the_right() -> None:
    input_ids, attention_mask, response_mask = pad([TokenizedRow((5, 6, 7), 1), TokenizedRow((8, 9), 1)], 3, CPU)
    assert input_ids.tolist() == [[5, 6, 7], [8, 9, 3]]
    assert attention_mask.tolist() == [[1, 1, 1], [1, 1, 0]]
    assert response_mask.tolist() == [[0, 1, 1], [0, 1, 0]]


def test_row_losses_equal_a_loop_over_rows_and_tokens() -> None:
    decoder = fresh_decoder()
    rows = tokenize(ROWS, decoder)
    with torch.no_grad():
        found = row_losses(decoder.model.eval(), *pad(rows, 0, CPU))
        for place, row in enumerate(rows):
            ids = torch.tensor(row.input_ids)
            logits = decoder.model(ids[None]).logits[0]
            losses = [torch.nn.functional.cross_entropy(logits[i - 1], ids[i]) for i in range(row.response_start, len(ids))]
            torch.testing.assert_close(found[place], torch.stack(losses).mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("budget", [1, 20, 64, 10_000])
def test_batches_keep_the_budget_and_hold_each_row_once(budget: int) -> None:
    rows = [TokenizedRow(tuple(range(length)), 1) for length in (9, 3, 30, 3, 17, 8, 3)]
    batches = token_batches(rows, budget)
    assert sorted(position for batch in batches for position in batch) == list(range(7))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(len(rows[position].input_ids) for position in batch) <= budget
    assert len(batches) == {1: 7, 10_000: 1}.get(budget, len(batches))


def test_fingerprint_changes_with_one_weight() -> None:
    model = fresh_decoder().model
    before = fingerprint_model(model)
    assert fingerprint_model(fresh_decoder().model) == before
    with torch.no_grad():
        model.model.norm.weight[3] += 1e-3
    assert fingerprint_model(model) != before


def test_fingerprint_takes_scalars_and_half_precision() -> None:
    model = torch.nn.BatchNorm1d(2)  # it holds a 0-dimensional buffer
    assert fingerprint_model(model) != fingerprint_model(torch.nn.BatchNorm1d(2).to(torch.bfloat16))


def test_a_chat_template_of_the_config_is_the_one_that_is_used(tmp_path: Path, repository: Path) -> None:
    saved = fresh_decoder()
    saved.model.save_pretrained(tmp_path)
    saved.tokenizer.save_pretrained(tmp_path)
    config, _ = parse_config(
        TeacherConfig, [str(repository / "configs/date_lm/teacher_toxicity.yaml"), "--decoder.path", str(tmp_path)], "teacher"
    )
    decoder = load_decoder(DecoderConfig(path=str(tmp_path), chat_template=config.decoder.chat_template), [], 0)
    (row,) = tokenize([Example(id="a", context=(Turn(role="user", content="ask"),), response="say")], decoder)
    assert decoder.tokenizer.decode(list(row.input_ids)) == "<|user|>\nask\n<|assistant|>\nsay<eos>"
    assert decoder.tokenizer.decode(list(row.input_ids[row.response_start :])) == "say<eos>", "the loss is on the response and its end"


def test_fresh_decoder_depends_on_its_seed_alone() -> None:
    torch.manual_seed(1)
    first = make_fresh_decoder(SMALL, ROWS, seed=0)
    drawn = torch.rand(1)
    torch.manual_seed(1)
    assert torch.equal(torch.rand(1), drawn)  # the caller's random state is left alone
    second = make_fresh_decoder(SMALL, ROWS, seed=0)
    assert fingerprint_model(first.model) == fingerprint_model(second.model)
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    assert fingerprint_model(make_fresh_decoder(SMALL, ROWS, seed=1).model) != fingerprint_model(first.model)


@pytest.mark.parametrize("tied", [True, False])
def test_random_weights_keep_shapes_and_deviations_and_nothing_else(tied: bool) -> None:
    decoder = grouped_decoder(tied)
    before = {name: weight.detach().clone() for name, weight in decoder.model.named_parameters()}
    randomise_weights(decoder, seed=0)
    after = {name: weight.detach() for name, weight in decoder.model.named_parameters()}
    assert after.keys() == before.keys() and sum(weight.ndim == 1 for weight in after.values()) == 5, "two norms a layer and the last"
    for name, weight in after.items():
        assert weight.shape == before[name].shape
        if weight.ndim == 1:
            assert torch.equal(weight, before[name]), "norms keep their gains"
        else:
            assert not (weight == before[name]).any(), name
            assert float(weight.std() / before[name].std()) == pytest.approx(1, abs=5 / (2 * weight.numel()) ** 0.5), name
            together = torch.corrcoef(torch.stack([weight.flatten(), before[name].flatten()]))[0, 1]
            assert abs(float(together)) < 5 / weight.numel() ** 0.5, name


def test_random_weights_are_drawn_from_their_seed_alone() -> None:
    decoders = [fresh_decoder() for _ in range(3)]
    for decoder, (global_seed, seed) in zip(decoders, ((1, 0), (2, 0), (1, 1)), strict=True):
        torch.manual_seed(global_seed)
        expected = torch.rand(1)
        torch.manual_seed(global_seed)
        randomise_weights(decoder, seed)
        assert torch.equal(torch.rand(1), expected)  # the caller's random state is left alone
    first, again, other = (fingerprint_model(decoder.model) for decoder in decoders)
    assert first == again and first != other


def test_no_two_matrices_get_the_same_random_weights() -> None:
    decoder = fresh_decoder()
    randomise_weights(decoder, seed=0)
    heads = torch.stack([weight.detach().flatten()[:64] for weight in decoder.model.parameters() if weight.ndim > 1])
    alike = torch.corrcoef(heads) - torch.eye(len(heads))
    assert alike.abs().max() < 0.7


@pytest.mark.parametrize("tied", [True, False])
def test_random_weights_leave_tied_embeddings_tied(tied: bool) -> None:
    decoder = grouped_decoder(tied)
    randomise_weights(decoder, seed=0)
    inputs, outputs = (dict(decoder.model.named_modules())[name].get_parameter("weight") for name in ("model.embed_tokens", "lm_head"))
    assert torch.equal(inputs, outputs) == tied and (inputs is outputs) == tied


def test_random_weights_of_half_precision_stay_so() -> None:
    decoder = fresh_decoder()
    for weight in decoder.model.parameters():
        weight.data = weight.data.bfloat16()
    before = fingerprint_model(decoder.model)
    randomise_weights(decoder, seed=0)
    assert {weight.dtype for weight in decoder.model.parameters()} == {torch.bfloat16}
    assert fingerprint_model(decoder.model) != before


def test_a_saved_decoder_loads_as_it_was(tmp_path: Path) -> None:
    decoder = fresh_decoder()
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    loaded = load_decoder(DecoderConfig(path=str(tmp_path), device="cpu"), [], seed=9)
    assert loaded.max_tokens == 128
    assert fingerprint_model(loaded.model) == fingerprint_model(decoder.model)
    rows = tokenize(ROWS, decoder)
    assert tokenize(ROWS, loaded) == rows
    with torch.no_grad():
        batch = pad(rows, 0, CPU)[:2]
        assert torch.equal(loaded.model(*batch).logits, decoder.model.eval()(*batch).logits)


@pytest.mark.parametrize("fresh", [True, False])
def test_dtype_is_honoured(tmp_path: Path, fresh: bool) -> None:
    decoder = fresh_decoder()
    decoder.model.save_pretrained(tmp_path)
    decoder.tokenizer.save_pretrained(tmp_path)
    path = None if fresh else str(tmp_path)
    loaded = load_decoder(DecoderConfig(path=path, fresh=SMALL if fresh else None, dtype="bfloat16", device="cpu"), ROWS, seed=0)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT's own
def test_a_saved_adapter_loads_with_its_base(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    decoder = fresh_decoder()
    decoder.model.save_pretrained(tmp_path / "base")
    decoder.tokenizer.save_pretrained(tmp_path / "base")
    get_peft_model(decoder.model, LoraConfig(r=2, target_modules=["q_proj"])).save_pretrained(str(tmp_path / "adapter"))
    config = DecoderConfig(path=str(tmp_path / "base"), adapter=str(tmp_path / "adapter"), device="cpu")
    assert any("lora_B" in name for name, _ in load_decoder(config, [], 0).model.named_parameters())


def test_a_path_that_is_no_decoder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"decoder '.*empty', adapter None: cannot be loaded .*check names"):
        load_decoder(DecoderConfig(path=str(tmp_path / "empty")), [], 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "exactly one of"),
        ({"path": "a", "fresh": FreshDecoder()}, "exactly one of"),
        ({"fresh": FreshDecoder(), "adapter": "b"}, "not to a fresh decoder"),
    ],
)
def test_contradictions_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DecoderConfig(**settings)  # type: ignore[arg-type]
