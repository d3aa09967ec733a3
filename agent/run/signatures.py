r"""The table of what known failures say, each anchored at the start of a message and with where the text is from.

A pattern is matched against a line after its prefixes are gone (`agent.run.logtext`), from the start; the type
of an exception may stand before it (`M`). Nothing is searched for inside arbitrary text: `inf` in `INFO` is no
overflow. The first row that matches a line counts, so the particular stands before the general.

Rank says which of several failures near the end of a log is the root:
CAUSE (out of memory: what follows it is noise) before SPECIFIC before GENERIC (an exception's type alone) before
CASCADE (what one dead process does to the others).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum

from agent.contract import CrashClass


class Rank(IntEnum):
    CAUSE = 0
    SPECIFIC = 1
    GENERIC = 2
    CASCADE = 3


@dataclass(frozen=True)
class Signature:
    name: str
    crash_class: CrashClass
    pattern: re.Pattern[str]
    rank: Rank
    meaning: str
    source: str


M = r"^(?:(?:[A-Za-z_]\w*\.)*\w*(?:Error|Exception|Failed)(?:\(\w+\))?: )?"
"""An exception's type, if there is one, before the message."""
T = r"^(?:[A-Za-z_]\w*\.)*"
"""The package of an exception's type, where the type itself decides."""


def _row(
    name: str, crash_class: CrashClass, pattern: str, meaning: str, source: str, rank: Rank = Rank.SPECIFIC
) -> Signature:
    return Signature(name, crash_class, re.compile(pattern), rank, meaning, source)


PYTORCH = "PyTorch c10 and ATen messages"
TABLE_2_5 = "signatures collected from ROCm, TheRock and kyuz0 issue threads (reference 2.5)"
KERNEL = "Linux mm/oom_kill.c"

OOM = [
    _row(
        "oom-device",
        "oom",
        M + r"(?:CUDA|HIP|XPU|NPU|MPS backend) out of memory\b",
        "device memory is spent",
        PYTORCH + "; kyuz0 vllm#11, image-video#3",
        Rank.CAUSE,
    ),
    _row("oom-type", "oom", T + r"OutOfMemory(?:Error|Exception)\b", "device memory is spent", PYTORCH, Rank.CAUSE),
    _row(
        "oom-runtime",
        "oom",
        M
        + r"(?:(?:CUDA|Cuda|HIP|cuda runtime|hip runtime) [Ee]rror(?: \(2\))? ?: out of memory|hipErrorOutOfMemory\b"
        + r"|THCudaCheck FAIL .* error=2 : out of memory)",
        "the driver could not allocate",
        PYTORCH,
        Rank.CAUSE,
    ),
    _row(
        "oom-nccl",
        "oom",
        r"^(?:\S+:\d+ )?(?:N|R)CCL WARN (?:Cuda|HIP) failure (?:2 )?'out of memory'",
        "the collective library could not allocate on the device",
        "NCCL include/alloc.h",
        Rank.CAUSE,
    ),
    _row(
        "oom-blas",
        "oom",
        M + r"(?:CUDA|HIP) error: (?:CU|HIP)BLAS_STATUS_ALLOC_FAILED\b",
        "no device memory left for the matrix library's workspace",
        "cuBLAS status codes",
        Rank.CAUSE,
    ),
    _row(
        "oom-kv-cache",
        "oom",
        r"^ValueError: (?:No available memory for the cache blocks|The model's max seq len \(\d+\) is larger than the"
        r" maximum number of tokens that can be stored in KV cache|To serve at least one request with the model)",
        "weights leave no room for the key-value cache",
        "vLLM v1/core/kv_cache_utils.py",
        Rank.CAUSE,
    ),
    _row(
        "oom-hsa",
        "oom",
        r"^.*\bHSA_STATUS_ERROR_OUT_OF_RESOURCES\b",
        "the ROCm runtime could not allocate",
        "ROCR hsa.h status codes",
        Rank.CAUSE,
    ),
    _row(
        "oom-host",
        "oom",
        T + r"(?:MemoryError|_?ArrayMemoryError)(?::|$)|^(?:terminate called after throwing an instance of"
        r" 'std::bad_alloc'"
        r"|what\(\):\s+std::bad_alloc|(?:RuntimeError: )?std::bad_alloc$)",
        "host memory is spent",
        "CPython, NumPy, libstdc++",
        Rank.CAUSE,
    ),
    _row(
        "oom-host-torch",
        "oom",
        r"^RuntimeError: (?:\[enforce fail at [^\]]*\] ?)?(?:\.|data\. )?\s*DefaultCPUAllocator: (?:can't"
        r" allocate|not enough) memory",
        "host memory is spent",
        "PyTorch c10/core/CPUAllocator",
        Rank.CAUSE,
    ),
    _row(
        "oom-worker-killed",
        "oom",
        r"^RuntimeError: DataLoader worker \(pid(?:\(s\))? [\d, ]+\) is killed by signal: Killed",
        "the kernel killed a loader process, presumably for host memory",
        "PyTorch utils/data/_utils/signal_handling.py",
        Rank.CAUSE,
    ),
    _row(
        "oom-scheduler",
        "oom",
        r"^slurmstepd: error: Detected \d+ oom[-_ ]kill event|^Task was killed due to the node running low on memory",
        "the scheduler saw a memory kill",
        "Slurm cgroup plug-in; Ray memory monitor",
        Rank.CAUSE,
    ),
    _row(
        "oom-kernel",
        "oom",
        r"^(?:Memory cgroup out of memory|Out of memory): Kill(?:ed)? process \d+|^oom-kill:constraint=",
        "the kernel killed a process for memory",
        KERNEL,
        Rank.CAUSE,
    ),
]

BACKEND = [
    _row(
        "gpu-fault",
        "backend",
        r"^(?:Memory access fault|HW Exception) by GPU node-\d+",
        "the GPU faulted: wrong override, old ROCm or firmware",
        TABLE_2_5 + "; ROCm#5824, TheRock#2151",
    ),
    _row(
        "amdgpu-kernel",
        "backend",
        r"^(?:amdgpu [\da-f:.]+: )?amdgpu: +(?:\[\w+\] page fault|MES failed to respond|failed to remove"
        r" hardware queue"
        r"|MES might be in unrecoverable state|GPU reset begin|GCVM_L2_PROTECTION_FAULT|Failed to evict queue"
        r"|ring \S+ timeout"
        r"|Faulty UTCL2)|^\[drm:\w+.*\] \*ERROR\* ring \S+ timeout",
        "the amdgpu driver reports a fault or a reset: firmware, kernel and ROCm do not fit",
        TABLE_2_5 + "; rocm-libraries#1132, ROCm#6658, TheRock#1271",
    ),
    _row("nvidia-xid", "backend", r"^NVRM: Xid \(", "the NVIDIA driver reports a fault", "NVIDIA Xid errors"),
    _row(
        "hip-code-object",
        "backend",
        r"^\"?hipError(?:NoBinaryForGpu|InvalidImage|InvalidDeviceFunction|LaunchFailure|InvalidKernelFile"
        r"|InvalidValue)\b",
        "the wheel has no code for this GPU, or a kernel could not run",
        TABLE_2_5 + "; pytorch#164346, TheRock#7839, ROCm#6034",
    ),
    _row(
        "hsa-status",
        "backend",
        r"^.*\bHSA_STATUS_ERROR_[A-Z_]+\b",
        "the ROCm runtime gave up: wrong HSA_OVERRIDE_GFX_VERSION or a broken queue",
        TABLE_2_5 + "; likelovewant#37",
    ),
    _row(
        "rocm-library",
        "backend",
        r"^(?:rocBLAS error: |MIOpen Error: |MIOpen\(HIP\): Error \[|RuntimeError: (?:miopenStatus|ROCm linker"
        r" )|hipBLASLt error)",
        "a ROCm library lacks files or code for this GPU",
        "rocBLAS, MIOpen; ROCm#4499",
    ),
    _row(
        "compiler",
        "backend",
        T + r"(?:BackendCompilerFailed|InductorError|LoweringException|InternalTorchDynamoError|CompilationError"
        r"|TritonMissing|OutOfResources)\b|^(?:RuntimeError: )?PassManager::run failed|^RuntimeError: Cannot"
        r" find a working triton"
        r"|^(?:triton\.\S+: )?out of resource: shared memory",
        "the compiler for kernels failed: run without compilation",
        "torch._dynamo, torch._inductor, triton; nixified-ai/flake#297",
    ),
    _row(
        "attention",
        "backend",
        r"^(?:RuntimeError: )?No available kernel\. +Aborting execution|^RuntimeError: No available kernel"
        r"|^(?:ImportError|ValueError|RuntimeError): Flash ?Attention",
        "no attention kernel fits: use another attention implementation",
        TABLE_2_5 + "; TheRock#1364",
    ),
    _row(
        "device-assert",
        "data",
        M + r"(?:CUDA|HIP) error: device-side assert triggered",
        "an index on the device was out of range, most often a token id beyond the vocabulary",
        PYTORCH,
        Rank.CASCADE,
    ),
    _row(
        "device-error",
        "backend",
        M + r"(?:CUDA|HIP|cuDNN|cuda runtime)(?: driver| runtime)? [Ee]rror(?: \(\d+\))? ?: \S",
        "the device's runtime or libraries failed",
        PYTORCH + "; pytorch#164346, rocm-libraries#3550",
    ),
    _row(
        "no-device",
        "backend",
        r"^(?:RuntimeError|AssertionError): (?:Found no NVIDIA driver|No (?:HIP|CUDA) GPUs are available|Torch"
        r" not compiled with"
        r"|Unexpected error from (?:cuda|hip)GetDeviceCount|The NVIDIA driver on your system is too old)",
        "torch and the driver do not find each other",
        "PyTorch torch/cuda/__init__.py",
    ),
    _row(
        "dtype-unsupported",
        "backend",
        r"^ValueError: Your setup doesn't support (?:bf16|fp16|tf32)|^RuntimeError: \"\w+\" not implemented for"
        r" '(?:Half|BFloat16)'"
        r"|^\w+: .*\b(?:[Bb]f16|bfloat16|BFloat16|[Ff]p16) is not supported\b",
        "this device has no such arithmetic",
        "transformers training_args.py; ATen dispatch",
    ),
    _row(
        "binary-mismatch",
        "backend",
        r"^(?:(?:ImportError|OSError): )?\S+\.so[\d.]*: (?:undefined symbol|cannot open shared object file|version `)"
        r"|^RuntimeError: Failed to import \S+ because of the following error"
        r"|^NotImplementedError: Could not run '[\w:]+' (?:with arguments )?from the"
        r"|^RuntimeError: operator \S+ does not exist|^AttributeError: module '(?:torch|transformers|triton"
        r"|peft|numpy)\b[\w.]*' has no",
        "a library was built for, or expects, another version of its neighbour",
        "dynamic linker, PyTorch, transformers lazy import",
    ),
    _row(
        "collective",
        "backend",
        r"^(?:RuntimeError|DistBackendError): (?:N|R)CCL (?:error|communicator)|^nccl\w+Error: |^(?:\S+: )?(?:N"
        r"|R)CCL error in: "
        r"|^(?:\S+:\d+ )?(?:N|R)CCL WARN (?:Cuda|HIP) failure",
        "the collective library failed",
        "PyTorch torch/csrc/distributed/c10d",
        Rank.CASCADE,
    ),
]

NUMERIC = [
    _row(
        "sampling-nan",
        "numeric",
        M + r"probability tensor contains either `inf`, `nan` or element < 0",
        "the model's outputs are not finite",
        "ATen multinomial",
    ),
    _row(
        "loss-scale",
        "numeric",
        M + r"Current loss scale already at minimum",
        "fp16 overflows at every scale",
        "DeepSpeed loss_scaler.py",
    ),
    _row(
        "not-finite",
        "numeric",
        r"^(?:FloatingPointError|NumericError|OverflowError)\b|^RuntimeError: Function '\w+' returned nan values"
        r"|^RuntimeError: The total norm of order \S+ for gradients? .* is non-finite"
        r"|^ValueError: Expected parameter .* to satisfy the constraint .*, but found invalid values"
        r"|^(?:\w+: )?(?i:(?:the )?(?:training )?(?:loss|gradients?|grad[_ ]norm|logits?|rewards?|weights?"
        r"|parameters?)"
        r"(?: \w+){0,3} (?:is|are|became|went|was|turned|contains?) (?:not finite|non-?finite|nan|inf)\b)",
        "a number in the training is not finite",
        "PyTorch autograd, torch.distributions, common trainers",
    ),
    _row(
        "device-assert-numeric",
        "numeric",
        r"^\S+\.(?:cu|hip|cuh):\d+: .*Assertion `(?:probability|val|cumdist|sum)\b.*` failed",
        "sampling from probabilities that are not finite",
        "ATen cuda/MultinomialKernel.cu",
    ),
]

DATA = [
    _row(
        "device-assert-index",
        "data",
        r"^\S+\.(?:cu|hip|cuh):\d+: .*Assertion `(?:srcIndex < |index|t >= 0|-?sizes\[i\]|ind >= 0"
        r"|target)[^`]*` failed"
        r"|^IndexError: index out of range in self",
        "an index is out of range, most often a token id beyond the vocabulary",
        "ATen cuda/Indexing.cu, nn.functional.embedding",
    ),
    _row(
        "data-unreadable",
        "data",
        T + r"(?:JSONDecodeError|UnicodeDecodeError|ArrowInvalid|DatasetGenerationError|DatasetNotFoundError"
        r"|CastError"
        r"|DataError|EmptyDatasetError)\b|^Failed to (?:load|read) JSON\b|^(?:ValueError|KeyError):"
        r" \"?Column\b.* not in the dataset",
        "a data row or file is not what it must be",
        "json, pyarrow, datasets",
    ),
    _row(
        "hub",
        "data",
        M + r"(?:You are trying to access a gated repo|We couldn't connect to 'https?://|Can't load (?:tokenizer"
        r"|the (?:model|configuration"
        r"|config)|image processor)|\S+ is not a (?:local folder|valid model identifier)|\S+ does not appear to"
        r" have a file named"
        r"|Couldn't (?:reach|find a dataset)|Cannot reach https?://)|"
        + T
        + r"(?:GatedRepoError|RepositoryNotFoundError|RevisionNotFoundError|EntryNotFoundError"
        r"|LocalEntryNotFoundError"
        r"|OfflineModeIsEnabled|HfHubHTTPError|Unavailable)\b|^40[134] Client Error",
        "a model or data set cannot be had: gated, missing, or no network",
        "transformers utils/hub.py, huggingface_hub",
    ),
    _row(
        "chat-template",
        "data",
        r"^ValueError: Cannot use (?:chat template functions|apply_chat_template)"
        r"|^(?:jinja2\.exceptions\.)?(?:TemplateError|UndefinedError):",
        "the tokenizer has no chat template, or the conversation does not fit it",
        "transformers tokenization_utils_base.py",
    ),
    _row(
        "checkpoint",
        "data",
        r"^RuntimeError: Error\(s\) in loading state_dict for|^size mismatch for \S+: copying a param"
        r"|^RuntimeError: PytorchStreamReader failed"
        r"|" + T + r"(?:SafetensorError: Error while deserializing|UnpicklingError|EOFError: Ran out of input)",
        "a checkpoint is torn, or is of another shape than the model",
        "torch.nn.Module.load_state_dict, safetensors",
    ),
]

TIMEOUT = [
    _row(
        "collective-timeout",
        "timeout",
        r"^(?:\[[^\]]*\] ?)*Watchdog caught collective operation timeout|^\[E\S*"
        r" ?\S*ProcessGroupNCCL\.cpp:\d+\].*Watchdog caught collective",
        "a collective operation did not finish: one rank is stuck or gone",
        "PyTorch ProcessGroupNCCL watchdog",
    ),
    _row(
        "store-timeout",
        "timeout",
        T + r"(?:DistStoreError|DistNetworkError|RendezvousTimeoutError)(?:: .*[Tt]imed? ?out|$)|^RuntimeError:"
        r" (?:Timed out initializing"
        r"|The client socket has timed out|Socket Timeout|DataLoader timed out)",
        "the processes did not find each other in time",
        "PyTorch c10d store",
    ),
    _row(
        "scheduler-limit",
        "timeout",
        r"^(?:slurmstepd: error: )?\*\*\* (?:JOB|STEP) \S+ ON .*CANCELLED AT .*DUE TO TIME LIMIT|^=>> PBS: job"
        r" killed: walltime"
        r"|^TERM_RUNLIMIT: job killed",
        "the scheduler's time limit",
        "Slurm, PBS, LSF",
    ),
    _row(
        "python-timeout",
        "timeout",
        T + r"(?:TimeoutError|TimeoutExpired|GetTimeoutError|ReadTimeout|ConnectTimeout)\b",
        "something did not answer in time",
        "CPython, subprocess, Ray, requests",
        Rank.GENERIC,
    ),
]

RESOURCE = [
    _row(
        "disk-full",
        "resource",
        r"^\w+Error: Error while serializing: .*\bcode: 28\b"
        r"|^(?:\w+Error: )?(?:\[Errno (?:28|122)\]|.*\bNo space left on device \(os error 28\))|^RuntimeError:"
        r" \[enforce fail at inline_container"
        r"|^RuntimeError: PytorchStreamWriter failed writing|^ResourceError\b",
        "no space left on the disk, or in shared memory",
        "errno ENOSPC and EDQUOT; PyTorch caffe2/serialize",
    ),
    _row(
        "open-files",
        "resource",
        r"^(?:\w+Error: )?\[Errno (?:23|24)\]|^RuntimeError: (?:received 0 items of ancdata|Too many open files)",
        "too many open files",
        "errno ENFILE and EMFILE",
    ),
    _row(
        "permission",
        "resource",
        r"^(?:\w+Error: )?\[Errno (?:13|30|1)\] ",
        "no permission, or a read-only file system",
        "errno EACCES, EROFS, EPERM",
    ),
    _row(
        "address-in-use",
        "resource",
        r"^(?:\w+Error: )?\[Errno 98\]|^(?:\w+: )?The server socket has failed to listen on any local network address"
        r"|^(?:RuntimeError|DistNetworkError): .*\bEADDRINUSE\b",
        "the network port is taken",
        "errno EADDRINUSE",
    ),
    _row(
        "shared-memory",
        "resource",
        r"^(?:ERROR: )?Unexpected bus error encountered in worker|^RuntimeError: DataLoader worker"
        r" \(pid(?:\(s\))? [\d, ]+\) is killed by"
        r" signal: Bus error|^RuntimeError: unable to (?:open shared memory object|write to file </torch_"
        r"|resize file </torch_)"
        r"|^RuntimeError: unable to allocate shared memory",
        "shared memory (/dev/shm) is too small",
        "PyTorch utils/data, ATen MapAllocator",
    ),
    _row(
        "threads",
        "resource",
        r"^RuntimeError: can't start new thread|^BlockingIOError: \[Errno 11\]|^OpenBLAS blas_thread_init:"
        r" pthread_create failed",
        "too many processes or threads",
        "errno EAGAIN",
    ),
]

TYPO = [
    _row(
        "syntax",
        "typo",
        T + r"(?:SyntaxError|IndentationError|TabError)(?::|$)",
        "a file is not valid Python",
        "CPython",
    ),
    _row(
        "yaml",
        "typo",
        T + r"(?:ScannerError|ParserError|ComposerError|ConstructorError|YAMLError)(?::|$)|^mapping values are"
        r" not allowed here",
        "a file is not valid YAML",
        "PyYAML",
    ),
    _row(
        "config",
        "typo",
        T
        + r"ValidationError: \d+ validation errors? for |"
        + T
        + r"(?:RecipeError|PlaybookError|UsageError|ConfigAttributeError"
        r"|ConfigKeyError|ConfigCompositionException|ConfigValueError|MissingMandatoryValue"
        r"|InterpolationKeyError|HydraException"
        r"|MissingConfigException|ValidationError)\b|^Could not override '",
        "a configuration does not validate",
        "pydantic, OmegaConf, Hydra",
    ),
    _row(
        "arguments",
        "typo",
        r"^\S+: error: (?:unrecognized arguments?|argument |the following arguments are required|ambiguous"
        r" option|invalid choice)"
        r"|^Error: No such option|^Error: Invalid value for|^ValueError: Some specified arguments are not used",
        "the command line is wrong",
        "argparse, Click, transformers HfArgumentParser",
    ),
    _row(
        "shape",
        "typo",
        r"^RuntimeError: (?:mat1 and mat2 shapes cannot be multiplied|size mismatch, m1|The size of tensor a"
        r" \(\d+\) must match"
        r"|Sizes of tensors must match|The expanded size of the tensor|shape '\[[^\]]*\]' is invalid for input"
        r" of size"
        r"|Given groups=\d+|Expected \d+-?[dD]|stack expects each tensor to be equal size|mat1 and mat2 must"
        r" have the same dtype"
        r"|expected scalar type|expected m1 and m2 to have the same dtype|Expected all tensors to be on the"
        r" same device"
        r"|batch1 and batch2|einsum\(\))|^ValueError: (?:Target modules? .*not found in the base model|operands"
        r" could not be broadcast"
        r"|Using a target size)",
        "shapes, types or module names do not fit each other",
        "ATen; PEFT",
    ),
    _row(
        "name",
        "typo",
        T + r"(?:NameError|UnboundLocalError|AttributeError|NotImplementedError|ZeroDivisionError)(?::|$)",
        "the code itself is wrong",
        "CPython",
        Rank.GENERIC,
    ),
    _row(
        "call",
        "typo",
        T + r"TypeError(?::|$)",
        "a function was called with what it does not take",
        "CPython",
        Rank.GENERIC,
    ),
    _row(
        "file-missing",
        "data",
        r"^FileNotFoundError(?::|$)",
        "a file is not there",
        "errno ENOENT",
        Rank.GENERIC,
    ),
]

SIGNATURES: tuple[Signature, ...] = (*OOM, *BACKEND, *NUMERIC, *DATA, *TIMEOUT, *RESOURCE, *TYPO)


def match(text: str) -> Signature | None:
    """The first signature that the line, without prefixes, begins with."""
    for signature in SIGNATURES:
        if signature.pattern.match(text):
            return signature
    return None
