# ruff: noqa: E501  # a log's line is as long as its program writes it
"""Log tails written for the tests after what the named software prints, with the class each must get.

None of them is in the shared corpus; they were written before the triage was run on them. (class, exit code, log)
"""

TAILS: dict[str, tuple[str, int | None, str]] = {
    # --- oom
    "hip oom with a long message and noise behind it": (
        "oom",
        1,
        """step 41 loss 0.713
Traceback (most recent call last):
  File "/opt/x/lib/python3.12/site-packages/agent/raft/learner.py", line 88, in step
    loss.backward()
  File "/opt/x/lib/python3.12/site-packages/torch/_tensor.py", line 648, in backward
    torch.autograd.backward(
torch.OutOfMemoryError: HIP out of memory. Tried to allocate 9.27 GiB. GPU 0 has a total capacity of 62.47 GiB of which 769.28 MiB is free.

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/opt/x/lib/python3.12/site-packages/agent/raft/engine.py", line 12, in main
    self.pool.close()
AttributeError: 'NoneType' object has no attribute 'close'
""",
    ),
    "killed by the shell's account": (
        "oom",
        137,
        "cycle 2: generate 12/64\n./train.sh: line 7:   912 Killed   python train.py\n",
    ),
    "cpu allocator": (
        "oom",
        1,
        """Traceback (most recent call last):
  File "train.py", line 10, in <module>
    model.to(torch.float32)
RuntimeError: [enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 467664896 bytes. Error code 12 (Cannot allocate memory)
""",
    ),
    "mmap of weights": (
        "oom",
        1,
        """Traceback (most recent call last):
  File "/x/site-packages/safetensors/torch.py", line 315, in load_file
    with safe_open(filename, framework="pt", device=device) as f:
RuntimeError: unable to mmap 4943162240 bytes from file </models/model-00001.safetensors>: Cannot allocate memory (12)
""",
    ),
    "acceleratorerror oom of newer torch": (
        "oom",
        1,
        "torch.AcceleratorError: CUDA error: out of memory\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n",
    ),
    "slurm saw the kill": (
        "oom",
        137,
        "Epoch 3 step 20\nslurmstepd: error: Detected 1 oom_kill event in StepId=123.0. Some of the step tasks have been OOM Killed.\n",
    ),
    # --- backend
    "gpu hang": (
        "backend",
        134,
        "HW Exception by GPU node-1 (Agent handle: 0x55d0) reason :GPU Hang\nFatal Python error: Aborted\n",
    ),
    "invalid isa": (
        "backend",
        134,
        ":0:rocdevice.cpp            :2986: 413104 us:  Callback: Queue 0x7f aborting with error : HSA_STATUS_ERROR_INVALID_ISA: The instruction set architecture is invalid. code: 0x100f\nAborted\n",
    ),
    "no attention kernel": (
        "backend",
        1,
        """Traceback (most recent call last):
  File "m.py", line 4, in forward
    return F.scaled_dot_product_attention(q, k, v)
RuntimeError: No available kernel. Aborting execution.
""",
    ),
    "triton shared memory": (
        "backend",
        1,
        "triton.runtime.errors.OutOfResources: out of resource: shared memory, Required: 131072, Hardware limit: 65536. Reducing block sizes or `num_stages` may help.\n",
    ),
    "flash attention missing": (
        "backend",
        1,
        """Traceback (most recent call last):
  File "/x/site-packages/transformers/modeling_utils.py", line 2000, in _check_flash
    raise ImportError(
ImportError: FlashAttention2 has been toggled on, but it cannot be used due to the following error: the package flash_attn seems to be not installed.
""",
    ),
    "half on a cpu": ("backend", 1, "RuntimeError: \"addmm_impl_cpu_\" not implemented for 'Half'\n"),
    "old driver": (
        "backend",
        1,
        "RuntimeError: The NVIDIA driver on your system is too old (found version 11040). Please update your GPU driver.\n",
    ),
    "illegal memory access": (
        "backend",
        1,
        "RuntimeError: CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be asynchronously reported\n",
    ),
    "inductor": (
        "backend",
        1,
        "torch._inductor.exc.InductorError: RuntimeError: PassManager::run failed\n\nSet TORCHDYNAMO_VERBOSE=1 for the internal stack trace\n",
    ),
    "fault inside a device library": (
        "backend",
        -11,
        'Fatal Python error: Segmentation fault\n\nCurrent thread 0x00007f1 (most recent call first):\n  File "/x/site-packages/torch/cuda/__init__.py", line 372 in _lazy_init\n  File "train.py", line 3 in <module>\n',
    ),
    "torch has no such function": (
        "backend",
        1,
        "AttributeError: module 'torch.library' has no attribute 'register_fake'\n",
    ),
    # --- numeric
    "nan in the loss": ("numeric", 1, "step 12\nRuntimeError: loss is nan at step 12 of cycle 1\n"),
    "autograd anomaly": (
        "numeric",
        1,
        "RuntimeError: Function 'LogSoftmaxBackward0' returned nan values in its 0th output.\n",
    ),
    "gradient norm": (
        "numeric",
        1,
        "RuntimeError: The total norm of order 2.0 for gradients from `parameters` is non-finite, so it cannot be clipped.\n",
    ),
    "nan without an exception": (
        "numeric",
        None,
        "{'loss': 0.9, 'grad_norm': 3.1}\n{'loss': nan, 'grad_norm': nan}\n{'loss': nan, 'grad_norm': nan}\n{'loss': nan, 'grad_norm': nan}\n",
    ),
    "categorical with nan": (
        "numeric",
        1,
        "ValueError: Expected parameter logits (Tensor of shape (4, 32)) of distribution Categorical(logits: torch.Size([4, 32])) to satisfy the constraint IndependentConstraint(Real(), 1), but found invalid values:\ntensor([[nan, nan]])\n",
    ),
    # --- data
    "row without a field": (
        "data",
        1,
        """Traceback (most recent call last):
  File "train.py", line 40, in <genexpr>
    questions = [row["question"] for row in rows]
KeyError: 'question'
""",
    ),
    "bad json": (
        "data",
        1,
        """Traceback (most recent call last):
  File "/usr/lib/python3.12/json/decoder.py", line 356, in raw_decode
    raise JSONDecodeError("Expecting value", s, err.value) from None
json.decoder.JSONDecodeError: Expecting value: line 1 column 1 (char 0)
""",
    ),
    "offline hub": (
        "data",
        1,
        "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them in the cached files.\n",
    ),
    "not a model": (
        "data",
        1,
        "OSError: my/modle is not a local folder and is not a valid model identifier listed on 'https://huggingface.co/models'\n",
    ),
    "torn weights": ("data", 1, "safetensors_rust.SafetensorError: Error while deserializing header: HeaderTooLarge\n"),
    "token id beyond the embedding": (
        "data",
        1,
        """Traceback (most recent call last):
  File "/x/site-packages/torch/nn/functional.py", line 2546, in embedding
    return torch.embedding(weight, input, padding_idx, scale_grad_by_freq, sparse)
IndexError: index out of range in self
""",
    ),
    # --- typo
    "keyword": ("typo", 1, "TypeError: AdamW.__init__() got an unexpected keyword argument 'lerning_rate'\n"),
    "own module": (
        "typo",
        1,
        """Traceback (most recent call last):
  File "train.py", line 2, in <module>
    from rewards import score
ModuleNotFoundError: No module named 'rewards'
""",
    ),
    "a key error under an INFO line": (
        "typo",
        1,
        """INFO: inference engine ready, confidence interval off
Traceback (most recent call last):
  File "train.py", line 9, in main
    rate = settings["lerning_rate"]
KeyError: 'lerning_rate'
""",
    ),
    "lora targets": (
        "typo",
        1,
        "ValueError: Target modules {'q_prj'} not found in the base model. Please check the target modules and try again.\n",
    ),
    "hydra": (
        "typo",
        1,
        "Could not override 'trainer.lr'.\nTo append to your config use +trainer.lr=1\nomegaconf.errors.ConfigAttributeError: Key 'lr' is not in struct\n",
    ),
    "argparse": (
        "typo",
        2,
        "usage: train.py [-h] [--lr LR]\ntrain.py: error: argument --lr: invalid float value: 'fast'\n",
    ),
    "shapes": (
        "typo",
        1,
        "RuntimeError: The size of tensor a (128) must match the size of tensor b (64) at non-singleton dimension 1\n",
    ),
    # --- timeout
    "c10d store": (
        "timeout",
        1,
        "torch.distributed.DistStoreError: wait timeout after 300000ms, timed out waiting for keys: /a\n",
    ),
    "loader": ("timeout", 1, "RuntimeError: DataLoader timed out after 30 seconds\n"),
    "scheduler": (
        "timeout",
        -9,
        "step 10\nslurmstepd: error: *** JOB 7 ON n1 CANCELLED AT 2026-01-02T03:04:05 DUE TO TIME LIMIT ***\n",
    ),
    "processor time": ("timeout", -24, "cycle 3 train 12/40\n"),
    # --- resource
    "disk full in a checkpoint": (
        "resource",
        1,
        'safetensors_rust.SafetensorError: Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "No space left on device" })\n',
    ),
    "port": (
        "resource",
        1,
        "torch.distributed.DistNetworkError: The server socket has failed to listen on any local network address. port: 29500, useIpv6: false, code: -98, name: EADDRINUSE, message: address already in use\n",
    ),
    "permission": (
        "resource",
        1,
        "PermissionError: [Errno 13] Permission denied: '/srv/checkpoints/cycle-1'\n",
    ),
    "bus error": ("resource", -7, "generate 4/64\n"),
    "small shared tensor": (
        "resource",
        1,
        """Traceback (most recent call last):
  File "/usr/lib/python3.12/multiprocessing/shared_memory.py", line 116, in __init__
    self._mmap = mmap.mmap(self._fd, size)
OSError: [Errno 12] Cannot allocate memory
""",
    ),
    "threads": ("resource", 1, "RuntimeError: can't start new thread\n"),
    # --- unknown
    "a bare exit": ("unknown", 1, "cycle 1 generate 3/64\n"),
    "a bare segmentation fault in the middle": ("unknown", -11, "cycle 1 generate 3/64\n"),
    "a wrapper without a cause": (
        "unknown",
        1,
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:\n====\ntrain.py FAILED\nexitcode  : 1 (pid: 12)\n",
    ),
    "an assertion": (
        "unknown",
        1,
        'Traceback (most recent call last):\n  File "t.py", line 1, in <module>\n    assert ready\nAssertionError\n',
    ),
    "recovered from running out of memory, then stopped for another reason": (
        "unknown",
        1,
        """RuntimeError: CUDA out of memory. Tried to allocate 1.00 GiB
retrying with half the microbatch
{'loss': 0.8, 'step': 3}
{'loss': 0.7, 'step': 4}
Traceback (most recent call last):
  File "t.py", line 5, in <module>
    raise ValueError("something is odd")
ValueError: something is odd
""",
    ),
    "terminated from outside": ("unknown", -15, "cycle 1 generate 3/64\n"),
    "exit zero without a summary": ("unknown", 0, "done\n"),
}
