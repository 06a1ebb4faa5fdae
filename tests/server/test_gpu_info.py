"""GET /v1/gpu/info, without a GPU and with a stand-in for the driver's library."""
import time

import httpx

CARD = "gpu=NVIDIA GeForce RTX 5090|GPU-1|32607|30000|12.0|37|55|120500|575000|"
FIELDS = ["id", "name", "total_memory_gb", "free_memory_gb", "compute_capability", "driver_version", "cuda_version",
          "is_nvidia_5090", "is_nvidia_4090", "utilization", "temperature", "power", "recommended"]


def fake(build_dir, machine, **more):
    return {"DEEPINFER_CUDA_LIB_DIR": str(build_dir / "tests/support/fake_nvml"), "FAKE_NVML": machine} | more


def test_without_a_gpu(launch, build_dir):
    with launch(env=fake(build_dir, "init=9")) as server:
        reply = httpx.get(server.url + "/v1/gpu/info", timeout=30)
        assert reply.status_code == 200
        body = reply.json()
        assert body["gpu_count"] == 0 and body["gpus"] == [] and "driver is not loaded" in body["message"]
        assert httpx.head(server.url + "/v1/gpu/info").status_code == 200
        assert httpx.post(server.url + "/v1/gpu/info").status_code == 405


def test_cards_and_how_often_the_driver_is_asked(launch, build_dir, tmp_path):
    log = tmp_path / "log"
    machine = f"driver=580.82.07;cuda=13000;{CARD};gpu=-|GPU-2|-|-|-|-|-|-|-"
    # The CPU: what the fake library says of the cards is no reason to run on them.
    with launch("--device", "cpu", env=fake(build_dir, machine, FAKE_NVML_LOG=str(log))) as server:
        start = time.monotonic()
        replies = [httpx.get(server.url + "/v1/gpu/info", timeout=30) for _ in range(20)]
        asked = len(log.read_text().splitlines())
        assert asked <= 1 + int(time.monotonic() - start)
        assert {reply.status_code for reply in replies} == {200}
        body = replies[0].json()
        assert body["gpu_count"] == 2 and body["message"] is None
        card, unknown = body["gpus"]
        assert list(card) == FIELDS and list(unknown) == FIELDS
        assert card["name"] == "NVIDIA GeForce RTX 5090" and card["total_memory_gb"] == 31.84
        assert card["is_nvidia_5090"] is True and card["is_nvidia_4090"] is False
        assert (card["utilization"], card["temperature"], card["power"]) == (37, 55, 120.5)
        assert card["recommended"]["max_num_seqs"] == 512 and card["recommended"]["gpu_memory_utilization"] == 0.95
        assert unknown["id"] == 1 and unknown["name"] is None and unknown["free_memory_gb"] is None
        assert unknown["driver_version"] == "580.82.07"


def test_it_wants_the_key(launch, build_dir):
    with launch("--api-key", "secret", env=fake(build_dir, "init=9")) as server:
        assert httpx.get(server.url + "/v1/gpu/info", timeout=30).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert httpx.get(server.url + "/v1/gpu/info", headers=key, timeout=30).status_code == 200
