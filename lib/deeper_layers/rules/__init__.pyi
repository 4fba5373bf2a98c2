from .similarity import similarity_cut as similarity_cut
