{
  title = "A hash in Nix's own notation";
  module.services.lares.models.coder = {
    url = "https://models.example.org/coder.gguf";
    sha256 = "sha256-HZYTRjjSQrWEeLNWn5wXCLjz+uTYlWc0k94EBBHUbLM=";
  };
  message = ''
    services.lares.models.coder.sha256 = "sha256-HZYTRjjSQrWEeLNWn5wXCLjz+uTYlWc0k94EBBHUbLM=" is not 64 hexadecimal digits; `nix-hash --to-base16 --type sha256` turns other forms into them.
  '';
}
