"""`gym-bridge checkpoint` over real tiny models: out, in, and looked at."""

import json
import shutil
import struct
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def tensors(directory: Path) -> dict[str, torch.Tensor]:
    """All tensors of a directory's safetensors files, by name."""
    found: dict[str, torch.Tensor] = {}
    for file in sorted(directory.glob("*.safetensors")):
        found |= load_file(file)
    return found


def assert_bit_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if one[name].dtype != other[name].dtype or not torch.equal(one[name], other[name])] == []


def with_trainer(checkpoint: Path, model: Path) -> Path:
    """A checkpoint of ours: `model/` beside `trainer/`."""
    shutil.copytree(model, checkpoint / "model")
    (checkpoint / "trainer").mkdir()
    (checkpoint / "trainer" / "state.json").write_text('{"version": 10, "source": {}}')
    save_file({"moment": torch.zeros(1)}, checkpoint / "trainer" / "optimizer.safetensors")
    return checkpoint


@pytest.fixture
def run(tmp_path: Path, tiny_llama: Path) -> Path:
    """A run with a checkpoint of step 10."""
    with_trainer(tmp_path / "run" / "checkpoints" / "step_00000010", tiny_llama)
    settings = "policy: {model: base, lr: 0.1}\ndata: {train: a.jsonl}\nalgorithm: {batch_size: 4}\n"
    (tmp_path / "run" / "config.yaml").write_text(settings)
    return tmp_path / "run"


@pytest.fixture
def adapter(run: Path) -> Path:
    """What LoRA leaves beside that checkpoint's model."""
    directory = run / "checkpoints" / "step_00000010" / "trainer" / "adapter"
    directory.mkdir()
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"], "base_model_name_or_path": "base"}
    (directory / "adapter_config.json").write_text(json.dumps(config))
    save_file({"base_model.model.q_proj.lora_A.weight": torch.full((4, 32), 0.1)}, directory / "adapter_model.safetensors")
    return directory


def test_a_model_in_float32_leaves_bit_for_bit_with_its_tokenizer_and_config(gym_bridge, run, tiny_llama, tmp_path):
    ended = gym_bridge("checkpoint", "export", run, "--output", tmp_path / "out", "--dtype", "float32")
    assert ended.code == 0, ended.err
    assert_bit_equal(tensors(tmp_path / "out"), tensors(tiny_llama))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == "float32"
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (tiny_llama / name).read_bytes()


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_transformers_computes_with_an_exported_model_what_it_computes_with_the_rounded_original(
    gym_bridge, tiny_model, tmp_path, dtype
):
    options = [] if dtype == "bfloat16" else ["--dtype", dtype]  # bfloat16 is what nothing said means
    assert gym_bridge("checkpoint", "export", tiny_model, "--output", tmp_path / "out", *options).code == 0
    exported = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    rounded = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype))
    assert exported.dtype == getattr(torch, dtype)
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(exported(ids).logits, rounded(ids).logits)
    text = AutoTokenizer.from_pretrained(tmp_path / "out").apply_chat_template([{"role": "user", "content": "4"}], tokenize=False)
    assert "<|im_start|>user\n4" in text


def test_files_are_no_larger_than_was_said_and_load_together(gym_bridge, tiny_llama, tmp_path):
    words = ("--dtype", "float32", "--max-shard-size", "30KB")
    assert gym_bridge("checkpoint", "export", tiny_llama, "--output", tmp_path / "out", *words).code == 0
    files = sorted((tmp_path / "out").glob("*.safetensors"))
    assert files[0].name == f"model-00001-of-{len(files):05d}.safetensors"
    assert len(files) > 3
    sizes = [sum(tensor.nbytes for tensor in load_file(file).values()) for file in files]
    assert all(size <= 30_000 or len(load_file(file)) == 1 for size, file in zip(sizes, files, strict=True))
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert_bit_equal(dict(loaded.state_dict()), dict(AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()))


def test_a_dcp_directory_goes_both_ways_bit_for_bit_and_holds_no_pickle(gym_bridge, tiny_model, tmp_path):
    words = ("--dtype", "float32", "--format", "dcp", "--max-shard-size", "60KB")
    ended = gym_bridge("checkpoint", "export", tiny_model, "--output", tmp_path / "dcp", *words)
    assert ended.code == 0, ended.err
    assert not (tmp_path / "dcp" / ".metadata").exists()
    assert "DCP in safetensors" in gym_bridge("checkpoint", "inspect", tmp_path / "dcp").out
    ended = gym_bridge("checkpoint", "import", tmp_path / "dcp", "--output", tmp_path / "back")
    assert ended.code == 0, ended.err
    assert_bit_equal(tensors(tmp_path / "back"), tensors(tiny_model))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_torch_reads_the_dcp_directory_itself(gym_bridge, tiny_llama, tmp_path):
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
    from torch.distributed.checkpoint.state_dict_loader import load

    words = ("--dtype", "float32", "--format", "dcp")
    assert gym_bridge("checkpoint", "export", tiny_llama, "--output", tmp_path / "dcp", *words).code == 0
    expected = tensors(tiny_llama)
    found = {name: torch.empty_like(tensor) for name, tensor in expected.items()}
    load(found, storage_reader=HuggingFaceStorageReader(str(tmp_path / "dcp")), no_dist=True)
    assert_bit_equal(found, expected)


def save_halves(directory: Path, weights: dict[str, torch.Tensor]) -> None:
    """Two files as two ranks write them: each holds one half of every tensor, and says where that belongs."""
    directory.mkdir(parents=True)
    for rank in (0, 1):
        halves = {name: tensor.chunk(2)[rank].contiguous() for name, tensor in weights.items()}
        offsets = {name: [rank * weights[name].chunk(2)[0].shape[0]] + [0] * (tensor.dim() - 1) for name, tensor in halves.items()}
        information = json.dumps({name: {"saved_offsets": offset} for name, offset in offsets.items()})
        file = directory / f"shard-{rank + 1:05d}-model-00001-of-00001.safetensors"
        save_file(halves, file, metadata={"DCP_SHARDING_INFO": information, "DCP_VERSION": "1.0", "format": "pt"})


def nemo_rl_step(directory: Path, tokenizer: Path) -> Path:
    """What stands around the weights in NeMo RL's step_N."""
    (directory / "policy" / "weights").mkdir(parents=True)
    shutil.copytree(tokenizer, directory / "policy" / "tokenizer")
    (directory / "training_info.json").write_text('{"step": 3}')
    (directory / "config.yaml").write_text("policy: {model_name: org/base}\n")
    return directory


def test_a_checkpoint_of_nemo_rl_in_shards_of_two_ranks_is_put_together(
    gym_bridge, tiny_llama, tokenizer_directory, tmp_path, caplog
):
    step = nemo_rl_step(tmp_path / "results" / "step_3", tokenizer_directory)
    save_halves(step / "policy" / "weights" / "model", tensors(tiny_llama))
    ended = gym_bridge("checkpoint", "import", tmp_path / "results", "--output", tmp_path / "out")
    assert ended.code == 2
    assert f"add --model org/base, as {step / 'config.yaml'} says" in ended.err
    ended = gym_bridge("checkpoint", "import", tmp_path / "results", "--output", tmp_path / "out", "--model", tiny_llama)
    assert ended.code == 0, ended.err
    assert_bit_equal(tensors(tmp_path / "out"), tensors(tiny_llama))
    assert "NeMo RL checkpoint, DCP in safetensors" in gym_bridge("checkpoint", "inspect", step).out


def test_a_missing_rank_is_told_and_nothing_is_written(gym_bridge, tiny_llama, tmp_path):
    save_halves(tmp_path / "dcp", tensors(tiny_llama))
    (tmp_path / "dcp" / "shard-00001-model-00001-of-00001.safetensors").unlink()
    ended = gym_bridge("checkpoint", "import", tmp_path / "dcp", "--model", tiny_llama, "--output", tmp_path / "out")
    assert ended.code == 1
    assert "not whole" in ended.err
    assert gym_bridge("checkpoint", "inspect", tmp_path / "dcp").code == 1
    save_halves(tmp_path / "last", tensors(tiny_llama))
    (tmp_path / "last" / "shard-00002-model-00001-of-00001.safetensors").unlink()
    ended = gym_bridge("checkpoint", "import", tmp_path / "last", "--model", tiny_llama, "--output", tmp_path / "out")
    assert ended.code == 1
    assert "where the config expects" in ended.err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dcp", "last"]


def test_a_consolidated_directory_of_nemo_rl_needs_no_base(gym_bridge, tiny_qwen3, tokenizer_directory, tmp_path):
    step = nemo_rl_step(tmp_path / "step_3", tokenizer_directory)
    shutil.copytree(tiny_qwen3, step / "policy" / "weights" / "model" / "consolidated")
    save_halves(step / "policy" / "weights" / "model" / "beside", {"a": torch.zeros(2)})
    assert gym_bridge("checkpoint", "import", step, "--output", tmp_path / "out").code == 0
    assert_bit_equal(tensors(tmp_path / "out"), tensors(tiny_qwen3))


class Planted:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_a_pickled_dcp_is_read_with_trust_alone(gym_bridge, tiny_qwen3, tokenizer_directory, tmp_path, caplog):
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    step = nemo_rl_step(tmp_path / "step_3", tokenizer_directory)
    weights = step / "policy" / "weights"
    module = AutoModelForCausalLM.from_pretrained(tiny_qwen3)
    save({"model": module.state_dict()}, storage_writer=FileSystemWriter(str(weights)), no_dist=True)
    words = ("checkpoint", "import", step, "--model", tiny_qwen3, "--output", tmp_path / "out")
    ended = gym_bridge(*words)
    assert ended.code == 2
    assert ended.err.strip() == (
        f"gym-bridge: {weights / '.metadata'} is a pickle: reading it runs whatever code its author put there; "
        "add --trust-pickle if you trust where it comes from"
    )
    ended = gym_bridge("checkpoint", "inspect", step)
    assert ended.code == 1
    assert "pickles" in ended.out
    ended = gym_bridge(*words, "--trust-pickle")
    assert ended.code == 0, ended.err
    assert [record.message for record in caplog.records if "read as trusted" in record.message] != []
    assert_bit_equal(tensors(tmp_path / "out"), tensors(tiny_qwen3))


def test_what_was_planted_in_a_pickle_does_not_run_unless_trusted(gym_bridge, tiny_llama, tmp_path):
    import pickle

    directory, trap = tmp_path / "dcp", tmp_path / "sprung"
    directory.mkdir()
    (directory / ".metadata").write_bytes(pickle.dumps(Planted(trap)))
    for words in (("inspect", directory), ("import", directory, "--model", tiny_llama, "--output", tmp_path / "out")):
        assert gym_bridge("checkpoint", *words).code != 0
    assert not trap.exists()


def test_pickled_weights_of_a_hugging_face_directory_need_trust_too(gym_bridge, tiny_qwen3, tmp_path):
    old = tmp_path / "old"
    shutil.copytree(tiny_qwen3, old, ignore=shutil.ignore_patterns("*.safetensors"))
    torch.save(AutoModelForCausalLM.from_pretrained(tiny_qwen3).state_dict(), old / "pytorch_model.bin")
    ended = gym_bridge("checkpoint", "import", old, "--output", tmp_path / "out")
    assert ended.code == 2
    assert "--trust-pickle" in ended.err
    assert gym_bridge("checkpoint", "import", old, "--output", tmp_path / "out", "--trust-pickle").code == 0
    assert_bit_equal(tensors(tmp_path / "out"), tensors(tiny_qwen3))
    ended = gym_bridge("checkpoint", "export", old, "--output", tmp_path / "exported")
    assert ended.code == 2
    assert "gym-bridge checkpoint import" in ended.err


def test_an_adapter_leaves_apart(gym_bridge, run, adapter, tmp_path):
    words = ("--adapter", "apart", "--dtype", "float32")
    assert gym_bridge("checkpoint", "export", run, "--output", tmp_path / "out", *words).code == 0
    assert_bit_equal(tensors(tmp_path / "out"), tensors(adapter))
    assert (tmp_path / "out" / "adapter_config.json").read_bytes() == (adapter / "adapter_config.json").read_bytes()
    ended = gym_bridge("checkpoint", "inspect", tmp_path / "out", "--json")
    found = json.loads(ended.out)
    assert (found["kind"], found["adapter"]["rank"], found["adapter"]["alpha"]) == ("LoRA adapter", 4, 8)
    ended = gym_bridge("checkpoint", "import", tmp_path / "out", "--output", tmp_path / "no")
    assert (ended.code, "an adapter is no model" in ended.err) == (2, True)


def test_an_adapter_apart_computes_with_its_base_what_the_merged_model_computes(gym_bridge, tiny_llama, tmp_path):
    from peft import PeftModel

    from gym_bridge.policy.torch_policy import TorchPolicy
    from gym_bridge.schemas.settings import LoRASettings, PolicySettings

    policy = TorchPolicy(tiny_llama, PolicySettings(compute_dtype="float32", lora=LoRASettings(rank=4, alpha=8)))
    torch.manual_seed(1)
    for master in policy.masters.masters.values():
        master.data.normal_(std=0.1)  # at the start an adapter adds nothing
    policy.save(tmp_path / "run" / "checkpoints" / "step_00000001", source_state={})
    for kind in ("apart", "merged"):
        words = ("--output", tmp_path / kind, "--adapter", kind, "--dtype", "float32")
        assert gym_bridge("checkpoint", "export", tmp_path / "run", *words).code == 0
    ids = torch.tensor([[5, 6, 7]])
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")(ids).logits
    base = AutoModelForCausalLM.from_pretrained(tiny_llama)
    plain = base(ids).logits
    apart = PeftModel.from_pretrained(base, str(tmp_path / "apart"))(ids).logits
    assert (plain - merged).abs().max() > 0.1
    torch.testing.assert_close(apart, merged, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--adapter", "apart"), "its run trained no adapter"),
        (("--adapter", "apart", "--format", "dcp"), "leave --format dcp out"),
        (("--max-shard-size", "large"), "no size: 'large'; write it as 5GB, 500MB or 2GiB"),
        (("--max-shard-size", "0GB"), "no size: '0GB'"),
        (("--push-to-hub", "me/model"), "set HF_TOKEN in the environment"),
    ],
)
def test_an_unfit_setting_is_refused_before_anything_is_written(gym_bridge, run, tmp_path, monkeypatch, words, message):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    ended = gym_bridge("checkpoint", "export", run, "--output", tmp_path / "out", *words)
    assert ended.code == 2
    assert message in ended.err
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_nothing_that_exists_is_overwritten(gym_bridge, tiny_llama, tmp_path):
    (tmp_path / "mine").mkdir()
    for verb in ("export", "import"):
        ended = gym_bridge("checkpoint", verb, tiny_llama, "--output", tmp_path / "mine")
        assert (ended.code, "exists; nothing is overwritten" in ended.err) == (2, True)
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(gym_bridge, tiny_llama, tiny_disk):
    for words in (("export", tiny_llama), ("export", tiny_llama, "--format", "dcp"), ("import", tiny_llama)):
        ended = gym_bridge("checkpoint", *words, "--output", tiny_disk / "out")
        assert ended.code == 1
        assert f"cannot write {tiny_disk}" in ended.err
        assert list(tiny_disk.iterdir()) == []


def spoilt(model: Path, directory: Path, value: float) -> Path:
    shutil.copytree(model, directory)
    weights = tensors(directory)
    weights["model.norm.weight"][3] = value
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


@pytest.mark.parametrize(("value", "counts"), [(float("nan"), (1, 0)), (float("-inf"), (0, 1))])
def test_weights_that_are_no_numbers_are_counted_and_do_not_leave(gym_bridge, tiny_llama, tmp_path, value, counts):
    model = spoilt(tiny_llama, tmp_path / "spoilt", value)
    ended = gym_bridge("checkpoint", "inspect", model, "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["num_nan"], found["num_infinite"], found["whole"]) == (1, *counts, False)
    assert "model.norm.weight" in found["problems"][0]
    ended = gym_bridge("checkpoint", "export", model, "--output", tmp_path / "out")
    assert (ended.code, "model.norm.weight: 1 of 32 weights are NaN or infinite" in ended.err) == (1, True)


def test_a_weight_that_float16_cannot_hold_is_told(gym_bridge, tiny_llama, tmp_path):
    model = spoilt(tiny_llama, tmp_path / "large", 1e6)
    ended = gym_bridge("checkpoint", "export", model, "--output", tmp_path / "out", "--dtype", "float16")
    assert (ended.code, "too large for float16" in ended.err) == (1, True)
    assert gym_bridge("checkpoint", "export", model, "--output", tmp_path / "out").code == 0


def test_a_run_is_described(gym_bridge, run, tiny_llama):
    ended = gym_bridge("checkpoint", "inspect", run, "--json")
    assert ended.code == 0, ended.out
    found = json.loads(ended.out)
    # 2 embeddings of 400 x 32; 2 layers of q, o 32 x 32, k, v 16 x 32, 3 x 64 x 32 and 2 norms of 32; a last norm
    assert found["num_parameters"] == {"float32": 2 * 12800 + 2 * (2 * 1024 + 2 * 512 + 3 * 2048 + 64) + 32}
    assert found["num_bytes"] == 4 * found["num_parameters"]["float32"]
    assert (found["kind"], found["step"], found["architecture"]) == ("run, Hugging Face directory", 10, "LlamaForCausalLM")
    assert (found["tokenizer"], found["tokenizer_size"], found["has_chat_template"]) == (
        "PreTrainedTokenizerFast",
        len(AutoTokenizer.from_pretrained(tiny_llama)),
        True,
    )
    assert found["settings"] == {"policy.model": "base", "policy.lr": 0.1, "data.train": "a.jsonl", "algorithm.batch_size": 4}
    assert found["whole"] is True
    shown = dict(line.split(maxsplit=1) for line in gym_bridge("checkpoint", "inspect", run).out.splitlines())
    assert (shown["whole"], shown["step"], shown["policy.lr"], shown["hidden_size"]) == ("yes", "10", "0.1", "32")


def test_blocks_are_counted_as_the_whole_is(tiny_llama, monkeypatch):
    from gym_bridge.policy import inspection

    whole = inspection.survey_weights(sorted(tiny_llama.glob("*.safetensors")))
    monkeypatch.setattr(inspection, "BLOCK_ELEMENTS", 100)
    assert inspection.survey_weights(sorted(tiny_llama.glob("*.safetensors"))) == whole


def test_damage_is_listed(gym_bridge, tiny_llama, run, tmp_path):
    words = ("--dtype", "float32", "--max-shard-size", "30KB")
    assert gym_bridge("checkpoint", "export", tiny_llama, "--output", tmp_path / "out", *words).code == 0
    gone = min((tmp_path / "out").glob("model-*.safetensors"))
    gone.unlink()
    ended = gym_bridge("checkpoint", "inspect", tmp_path / "out")
    assert (ended.code, f"weight files are missing, such as {gone.name}" in ended.out) == (1, True)
    (run / "checkpoints" / "step_00000010" / "trainer" / "state.json").unlink()
    file = run / "checkpoints" / "step_00000010" / "model" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    ended = gym_bridge("checkpoint", "inspect", run)
    assert ended.code == 1
    assert "no trainer/state.json" in ended.out
    assert "no whole safetensors file" in ended.out


def test_a_header_that_lies_about_its_length_takes_no_memory(gym_bridge, tmp_path):
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    assert gym_bridge("checkpoint", "inspect", tmp_path).code == 1


def test_a_model_with_the_wrong_base_is_refused(gym_bridge, tiny_llama, tiny_qwen3, tmp_path):
    save_halves(tmp_path / "dcp", tensors(tiny_llama))
    ended = gym_bridge("checkpoint", "import", tmp_path / "dcp", "--model", tiny_qwen3, "--output", tmp_path / "out")
    assert ended.code == 1
    assert "weights are missing, such as model.layers.0.self_attn.k_norm.weight" in ended.err


@pytest.mark.parametrize("verb", ["import", "inspect"])
def test_a_path_without_a_model_says_what_is_beside_it(gym_bridge, run, tmp_path, verb):
    options = ("--output", tmp_path / "out") if verb == "import" else ()
    (tmp_path / "empty").mkdir()
    ended = gym_bridge("checkpoint", verb, tmp_path / "rum", *options)
    assert (ended.code, "did you mean 'run'?" in ended.err) == (2, True)
    ended = gym_bridge("checkpoint", verb, tmp_path / "empty", *options)
    assert (ended.code, "no model in it" in ended.err) == (2, True)


SECRET = "hf_secretsecretsecret"


class Hub(ThreadingHTTPServer):
    """As much of the hub's API as an upload of small files asks for."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _HubHandler)
        self.created: list[dict] = []
        self.committed: list[dict] = []
        self.tokens: set[str] = set()
        self.refuses = False
        self.url = f"http://127.0.0.1:{self.server_port}"


class _HubHandler(BaseHTTPRequestHandler):
    server: Hub

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.tokens.add(self.headers["Authorization"])
        if self.server.refuses:
            self.answer({"error": f"no right to write with {SECRET}"}, 403)
        elif self.path.endswith("/repos/create"):
            self.server.created.append(json.loads(body))
            self.answer({"url": f"{self.server.url}/me/model", "name": "me/model"})
        elif "/preupload/" in self.path:
            files = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False} for one in json.loads(body)["files"]]
            self.answer({"files": files})
        elif "/commit/" in self.path:
            self.server.committed += [json.loads(line) for line in body.splitlines()]
            self.answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{self.server.url}/me/model/commit/{'0' * 40}"})
        else:
            self.answer({}, 404)

    def do_GET(self):
        self.answer({"id": "me/model", "sha": "0" * 40, "siblings": []})

    def answer(self, value: dict, status: int = 200) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_export_is_uploaded_with_the_token_of_the_environment(gym_bridge, hub, tiny_llama, tmp_path):
    words = ("--push-to-hub", "me/model", "--private")
    ended = gym_bridge("checkpoint", "export", tiny_llama, "--output", tmp_path / "out", *words)
    assert ended.code == 0, ended.err
    assert f"{hub.url}/me/model" in ended.out
    assert hub.tokens == {f"Bearer {SECRET}"}
    assert (hub.created[0]["name"], hub.created[0].get("private") or hub.created[0].get("visibility") == "private") == (
        "model",
        True,
    )
    sent = {one["value"]["path"] for one in hub.committed if one["key"] == "file"}
    assert sent == {path.name for path in (tmp_path / "out").iterdir()}


def test_a_refusal_of_the_hub_keeps_the_export_and_shows_no_token(gym_bridge, hub, tiny_llama, tmp_path):
    hub.refuses = True
    ended = gym_bridge("checkpoint", "export", tiny_llama, "--output", tmp_path / "out", "--push-to-hub", "me/model")
    assert ended.code == 1
    assert "cannot upload to me/model" in ended.err
    assert SECRET not in ended.err + ended.out
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_a_hub_that_cannot_be_reached_is_told(gym_bridge, tiny_llama, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_TOKEN", SECRET)
    ended = gym_bridge("checkpoint", "export", tiny_llama, "--output", tmp_path / "out", "--push-to-hub", "me/model")
    assert ended.code == 1, ended.err
    assert "http://127.0.0.1:9: cannot upload to me/model" in ended.err
