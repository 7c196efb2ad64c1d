# Coding agents and what their runs may touch.
{ lib, ... }:
let
  types = import ./types.nix { inherit lib; };
in
{
  options.services.lares.agents = {
    builtin = {
      model = lib.mkOption {
        type = lib.types.str;
        default = "";
        example = "coder";
        description = ''
          Model that the built-in agent asks, by a name the coordinator knows: one of
          {option}`services.lares.models`, an alias, or a model of an upstream. Empty: the first local model, in the
          order of their names, that is not for embeddings.
        '';
      };
      editFormat = lib.mkOption {
        type = lib.types.enum [
          "auto"
          "whole-file"
          "search-replace"
        ];
        default = "auto";
        example = "search-replace";
        description = ''
          Form in which edits are asked for. `auto`: whole files from models below 14 billion parameters, which get
          search/replace blocks wrong more often than not, and search/replace from there on. Whole files cost answer
          tokens in proportion to the file.
        '';
      };
      maxPrompt = lib.mkOption {
        type = types.size;
        default = "12 KiB";
        example = "32 KiB";
        description = ''
          Largest prompt. About 4 bytes are a token; small models get worse long before their context is full, and on a
          CPU the time to the first token grows with the prompt.
        '';
      };
      maxAnswerTokens = lib.mkOption {
        type = lib.types.ints.unsigned;
        default = 2048;
        example = 4096;
        description = "Most tokens of an answer. Prompt and answer together have to fit the model's context.";
      };
      answerTimeout = lib.mkOption {
        type = types.duration;
        default = "10m";
        example = "3m";
        description = "Longest wait for the whole answer. 2048 tokens take about two minutes at 17 tokens/s.";
      };
    };

    sandbox = {
      mode = lib.mkOption {
        type = lib.types.enum [
          "require"
          "off"
        ];
        default = "require";
        example = "off";
        description = ''
          Whether a run (an agent's or a check's) without confinement is refused. `off` leaves resource limits only:
          whatever a model or a check does, it does as {option}`services.lares.user`, with all of that user's files that
          ralph's unit shows.
        '';
      };
      read = lib.mkOption {
        type = lib.types.listOf (lib.types.strMatching "(~|/)[^[:space:]:%\"'\\\\]*");
        default = [
          "~/.cargo"
          "~/.rustup"
          "~/.pyenv"
          "~/.local"
          "~/.nvm"
          "~/.npm"
          "~/go"
        ];
        example = [ "/srv/toolchains" ];
        description = ''
          Paths, as strings, that a run may read and execute besides the system's own (`/nix/store` among them) and its
          worktree. `~` is the home directory of {option}`services.lares.user`. What does not exist is passed over.
          Packages for checks are better named in {option}`services.lares.ralph.path`.
        '';
      };
      write = lib.mkOption {
        type = lib.types.listOf (lib.types.strMatching "(~|/)[^[:space:]:%\"'\\\\]*");
        default = [ ];
        example = [ "/var/cache/ccache" ];
        description = ''
          Paths, as strings, that a run may also write, such as a shared build cache. What one task leaves there reaches
          the next one. The directories have to exist and to be writable for {option}`services.lares.user`.
        '';
      };
      checkNetwork = lib.mkOption {
        type = lib.types.enum [
          "none"
          "host"
        ];
        default = "none";
        example = "host";
        description = ''
          TCP of checks. `none`: no network at all, not even loopback. `host`: that of the machine, which also lifts the
          address filter of ralph's unit. Agents reach the coordinator and nothing else, whatever this says.
        '';
      };
      maxMemory = lib.mkOption {
        type = types.size;
        default = "8 GiB";
        example = "16 GiB";
        description = ''
          Most memory of each process of a run, counted as address space. Runtimes that reserve much more than they use
          (Go, Java, sanitizers) need a large value; it is a bound, nothing is set aside.
        '';
      };
      maxFile = lib.mkOption {
        type = types.size;
        default = "1 GiB";
        example = "4 GiB";
        description = "Largest file that a run may write. Linkers with debug information write the largest ones.";
      };
      maxProcesses = lib.mkOption {
        type = lib.types.ints.unsigned;
        default = 512;
        example = 2048;
        description = "Most processes and threads of a run. A run that grows over it is ended and says so.";
      };
      maxOutput = lib.mkOption {
        type = types.size;
        default = "256 KiB";
        example = "1 MiB";
        description = "Most bytes of output kept of a run: the first and the last half of it. The rest is read and dropped.";
      };
    };
  };
}
