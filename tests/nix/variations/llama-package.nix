{ pkgs }:
{
  module.services.lares = {
    llama.package = pkgs.writeShellScriptBin "llama-server-of-mine" "exit 0";
    llama.modelsDir = "/srv/gguf";
    llama.enginesDir = "/srv/engines";
  };
  settings.llama = {
    models_dir = "/srv/gguf";
    engines_dir = "/srv/engines";
  };
  settingsMatch."llama.server" = "/nix/store/.*-llama-server-of-mine/bin/llama-server";
}
