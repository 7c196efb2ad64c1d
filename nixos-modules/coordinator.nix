# The OpenAI-compatible door to all models.
{
  config,
  lib,
  utils,
  ...
}:
let
  cfg = config.services.lares;
  types = import ./types.nix { inherit lib; };
  service = import ./service.nix { inherit lib utils cfg; };
  wiring = import ./wiring.nix { inherit lib cfg; };

  upstream = {
    options = {
      url = lib.mkOption {
        type = lib.types.str;
        default = "";
        example = "https://api.example.org/v1";
        description = "Base URL up to and including `/v1`. Prompts sent to a server that is not on this machine leave it.";
      };
      models = lib.mkOption {
        type = lib.types.attrsOf lib.types.str;
        default = { };
        example = {
          large = "provider-model-name";
        };
        description = "The models it serves: the name that clients use, and the name that the upstream knows.";
      };
      apiKeyFile = lib.mkOption {
        type = lib.types.nullOr types.secretFile;
        default = null;
        example = "/run/secrets/cloud.key";
        description = ''
          File with the API key that is sent as `Authorization: Bearer`. Root has to be able to read it: systemd hands
          it to the coordinator as a credential. `null`: no key is sent.
        '';
      };
      maxInFlight = lib.mkOption {
        type = lib.types.ints.positive;
        default = 8;
        example = 2;
        description = "Most requests sent to it at the same time; further ones wait in the coordinator.";
      };
    };
  };
in
{
  options.services.lares.coordinator = {
    enable = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = ''
        Whether to run the coordinator: one address for all models, with keys, queueing, retries and metrics. It takes
        about 16 MiB of memory.
      '';
    };
    listen = lib.mkOption {
      type = lib.types.strMatching "[0-9A-Za-z.:]+:[0-9]+|\\[[0-9A-Fa-f:]+]:[0-9]+";
      default = "127.0.0.1:8092";
      example = "127.0.0.1:18092";
      description = ''
        Address and TCP port. Only loopback is accepted: keys travel in clear text. To serve other machines put a proxy
        with TLS in front, for example {option}`services.nginx`.
      '';
    };
    maxQueued = lib.mkOption {
      type = lib.types.ints.unsigned;
      default = 256;
      example = 32;
      description = "Most requests that wait for a free upstream; one more gets 429. A waiting request holds its body in memory.";
    };
    queueTimeout = lib.mkOption {
      type = types.duration;
      default = "5m";
      example = "30s";
      description = "Longest wait of a request for a free upstream; then it gets 503.";
    };
    firstByteTimeout = lib.mkOption {
      type = types.duration;
      default = "10m";
      example = "2m";
      description = ''
        Longest wait for an upstream's first byte. Without streaming that is the whole answer; with it, the time a
        model needs to read the prompt.
      '';
    };
    idleTimeout = lib.mkOption {
      type = types.duration;
      default = "2m";
      example = "30s";
      description = "Longest silence between two bytes of an answer; then the upstream counts as failed.";
    };
    retries = lib.mkOption {
      type = lib.types.ints.unsigned;
      default = 2;
      example = 0;
      description = ''
        Tries after the first, on another upstream where there is one, and only before the first byte of the answer.
        A try that failed late has cost its computing time.
      '';
    };
    maxBody = lib.mkOption {
      type = types.size;
      default = "16 MiB";
      example = "64 MiB";
      description = "Largest request body; a larger one gets 413. Bodies are held in memory.";
    };
    upstreams = lib.mkOption {
      type = lib.types.attrsOf (lib.types.submodule upstream);
      default = { };
      example = lib.literalExpression ''
        {
          cloud = {
            url = "https://api.example.org/v1";
            models.large = "provider-model-name";
            apiKeyFile = "/run/secrets/cloud.key";
          };
        }
      '';
      description = ''
        OpenAI-compatible servers beside the local models; the key is a name of your choice, of letters, digits, `-`,
        `_` and `.`. Several that serve a model of one name share its requests.
      '';
    };
  };

  config = lib.mkIf (cfg.enable && cfg.coordinator.enable) {
    services.lares.units = [ "lares-coordinator" ];

    systemd.services.lares-coordinator = service {
      name = "lares-coordinator";
      description = "Lares: OpenAI-compatible door to the models";
      guide = "configuration.md";
      arguments = [
        "serve"
        "coordinator"
      ];
      # Upstreams elsewhere have names, and names have addresses that only the resolver knows.
      addresses = if wiring.remoteUpstreams == [ ] then cfg.allowedAddresses else "any";
      unit = {
        wants = [ "lares-setup.service" ];
        after = [
          "lares-setup.service"
          "network.target"
        ]
        ++ wiring.storeUnits;
        restartTriggers = [ cfg.configFile ];
      };
      serviceConfig = {
        WatchdogSec = "30s";
        # When memory ends a model server or an agent's run goes first, the door last.
        OOMScoreAdjust = -100;
      };
    };
  };
}
