"""llama.cpp on a GGUF file, through the wheel `cyllama`, which has it compiled: greedy answers, and its quantizer.

An extra, not a dependency: `pip install 'deeper-layers[llama-cpp]'`. Nothing else in lib/ needs it.
"""

from pathlib import Path

from deeper_layers import files
from deeper_layers.errors import InputError, telling

# llama.cpp's numbers (llama_ftype) for the types that its quantizer makes
FILE_TYPES = dict(F16=1, Q4_0=2, Q4_1=3, Q8_0=7, Q5_0=8, Q5_1=9, Q2_K=10, Q3_K_M=12, Q4_K_M=15, Q5_K_M=17, Q6_K=18)
EXACT = ("f32", "f16", "q8_0")  # types of a GGUF file's matrices that are written here ...
ROUNDED = tuple(name.lower() for name in FILE_TYPES if name.lower() not in EXACT)  # ... and those by the quantizer
WHOLE = "give a whole GGUF file"
FLOAT32, DISABLED = 0, 0  # its numbers of a tensor's type (ggml_type), and of whether to use flash attention


def _library(path: str | Path):
    """llama.cpp, for a GGUF file that is whole: it ends the process for some damaged ones."""
    with telling("llama.cpp is not installed", "pip install cyllama", ImportError):
        from cyllama.llama import llama_cpp
    from deeper_layers.models.gguf_reading import read_gguf  # slow

    llama_cpp.disable_logging()
    read_gguf(Path(path))
    return llama_cpp


class LlamaCpp:
    """A GGUF file opened by llama.cpp. Raises InputError where the wheel is missing, or llama.cpp refuses the file."""

    def __init__(self, path: str | Path):
        self.library = _library(path)
        with telling(f"llama.cpp can't open {path}", WHOLE):
            self.model = self.library.LlamaModel(str(path), self.library.LlamaModelParams())
        self.vocabulary = self.model.get_vocab()

    def close(self) -> None:
        """Give the memory back."""
        self.model.close()

    def tokens(self, text: str) -> list[int]:
        """A text as tokens, begun as the file says (Gemma: with <bos>), as llama.cpp's programs and transformers do."""
        return self.vocabulary.tokenize(text, add_special=True, parse_special=False)

    def text(self, tokens: list[int]) -> str:
        """Tokens as text, special ones as they are written."""
        return self.vocabulary.detokenize(tokens, unparse_special=True)

    def greedy(self, prompt: list[int], tokens: int) -> list[int]:
        """The likeliest continuation of a prompt, `tokens` long, past the end of the text too."""
        options = self.library.LlamaContextParams()
        options.n_ctx = len(prompt) + tokens
        options.n_threads = options.n_threads_batch = 1
        # otherwise keys, values and sums over them are rounded to 16 bits, which no file asks for
        options.type_k = options.type_v = FLOAT32
        options.flash_attn_type = DISABLED
        context = self.library.LlamaContext(self.model, options)
        sampler = self.library.LlamaSampler(self.library.LlamaSamplerChainParams())
        sampler.add_greedy()
        found, given = [], prompt
        while len(found) < tokens:
            context.decode(self.library.llama_batch_get_one(given, len(prompt) + len(found) - len(given)))
            given = [sampler.sample(context, -1)]
            found += given
        return found


def quantize(source: str | Path, out: str | Path, type: str) -> Path:
    """Write a GGUF file in another type with llama.cpp's quantizer; tensors already of it are copied.

    Rows that the type's blocks do not divide get a type that llama.cpp chooses instead. Raises InputError where the
    wheel is missing, the type is unknown, `out` exists, or llama.cpp refuses the file.
    """
    if type not in FILE_TYPES:
        raise InputError(f"type is {type!r}, expected one of {', '.join(FILE_TYPES)}")
    library, out = _library(source), Path(out)
    options = library.LlamaModelQuantizeParams()
    options.ftype, options.nthread, options.allow_requantize = FILE_TYPES[type], 1, True
    with files.atomic_file(out) as partial, telling(f"llama.cpp can't quantize {source}", WHOLE, RuntimeError):
        library.model_quantize(str(source), str(partial), options)
    return out
