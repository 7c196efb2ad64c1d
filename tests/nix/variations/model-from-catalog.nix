# A model of the catalog is fetched by a unit of its own, the only one that may talk to other machines.
{
  bare = true;
  module.services.lares.models.coder.source = "qwen2.5-coder-0.5b-instruct";
  units = {
    "lares-model-coder.service" = {
      has = [
        ''"model" "pull" "coder"''
        "Type=oneshot"
        "network-online.target"
        "ProtectSystem=strict"
      ];
      lacks = [ "IPAddressDeny=any" ];
    };
    "lares-llama-coder.service".has = [
      "lares-model-coder.service"
      "IPAddressDeny=any"
    ];
  };
  # Fetching it again is a remedy.
  rules.has = [ ''"lares-model-coder.service"'' ];
  settings.models.coder.source = "qwen2.5-coder-0.5b-instruct";
  settings.llama.models_dir = "/var/lib/lares-models";
}
