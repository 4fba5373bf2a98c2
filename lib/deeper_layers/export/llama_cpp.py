"""llama.cpp on a GGUF file, through the wheel `cyllama`, which contains it compiled: greedy answers and its quantizer.

It is an extra, not a dependency: `pip install 'deeper-layers[llama-cpp]'`. Nothing else in lib/ needs it.
"""

from pathlib import Path

from deeper_layers import checks, files
from deeper_layers.errors import InputError, as_input_error

# llama.cpp's numbers (llama_ftype) for the types that its quantizer makes
FILE_TYPES = dict(
    F16=1, Q4_0=2, Q4_1=3, Q8_0=7, Q5_0=8, Q5_1=9, Q2_K=10, Q3_K_M=12, Q4_K_M=15, Q5_K_M=17, Q6_K=18
)
# types of matrices that are written here; llama.cpp's quantizer writes the others
EXACT_TYPES = (
    "f32",
    "f16",
    "q8_0",
)
ROUNDED_TYPES = tuple(name.lower() for name in FILE_TYPES if name.lower() not in EXACT_TYPES)
ADVICE = "give a whole GGUF file"
# llama.cpp's numbers for a tensor type (ggml_type), and for no flash attention
FLOAT32 = 0
DISABLED = 0


def _load_library(path: str | Path):
    """llama.cpp's module. The GGUF file is checked first, as llama.cpp ends the process for some damaged files."""
    from deeper_layers.models.gguf_reading import read_gguf  # slow

    library = check_llama_cpp()
    library.disable_logging()
    read_gguf(Path(path))
    return library


def check_llama_cpp():
    """llama.cpp's module. Raises InputError where the wheel is missing."""
    with as_input_error("llama.cpp is not installed", "pip install cyllama", ImportError):
        from cyllama.llama import llama_cpp
    return llama_cpp


class LlamaCpp:
    """A GGUF file opened in llama.cpp. Raises InputError where the wheel is missing, or llama.cpp refuses the file."""

    def __init__(self, path: str | Path):
        self.library = _load_library(path)
        with as_input_error(f"llama.cpp can't open {path}", ADVICE):
            self.model = self.library.LlamaModel(str(path), self.library.LlamaModelParams())
        self.vocabulary = self.model.get_vocab()

    def close(self) -> None:
        """Free the memory."""
        self.model.close()

    def tokenize(self, text: str) -> list[int]:
        """A text as tokens, with the first token that the file asks for (Gemma: <bos>), as in transformers."""
        return self.vocabulary.tokenize(text, add_special=True, parse_special=False)

    def detokenize(self, tokens: list[int]) -> str:
        """Tokens as text, special ones as they are written."""
        return self.vocabulary.detokenize(tokens, unparse_special=True)

    def generate(self, prompt: list[int], tokens: int) -> list[int]:
        """The greedy continuation of a prompt, always `tokens` long: it does not stop at the end of the text."""
        options = self.library.LlamaContextParams()
        options.n_ctx = len(prompt) + tokens
        options.n_threads = options.n_threads_batch = 1
        # else llama.cpp rounds keys, values and sums over them to 16 bits
        options.type_k = options.type_v = FLOAT32
        options.flash_attn_type = DISABLED
        context = self.library.LlamaContext(self.model, options)
        sampler = self.library.LlamaSampler(self.library.LlamaSamplerChainParams())
        sampler.add_greedy()
        generated = []
        batch = prompt
        while len(generated) < tokens:
            context.decode(
                self.library.llama_batch_get_one(batch, len(prompt) + len(generated) - len(batch))
            )
            batch = [sampler.sample(context, -1)]
            generated += batch
        return generated


@checks.check_types
def quantize(source: str | Path, out: str | Path, type: str) -> Path:
    """Write a GGUF file in another type with llama.cpp's quantizer. Tensors that have the type are copied.

    Where rows are not a multiple of the type's blocks, llama.cpp chooses another type. Raises InputError where the
    wheel is missing, the type is unknown, `out` exists, or llama.cpp refuses the file.
    """
    if type not in FILE_TYPES:
        raise InputError(f"type is {type!r}, expected one of {', '.join(FILE_TYPES)}")
    library = _load_library(source)
    out = checks.check_path("out", out)
    options = library.LlamaModelQuantizeParams()
    options.ftype = FILE_TYPES[type]
    options.nthread = 1
    options.allow_requantize = True
    with (
        files.atomic_file(out) as partial,
        as_input_error(f"llama.cpp can't quantize {source}", ADVICE, RuntimeError),
    ):
        library.model_quantize(str(source), str(partial), options)
    return out
