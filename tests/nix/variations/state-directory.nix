{
  module.services.lares.stateDir = "/var/lib/lares-staging";
  settings.state_dir = "/var/lib/lares-staging";
  units = {
    "lares-coordinator.service".has = [ "StateDirectory=lares-staging" ];
    "lares-llama-coder.service".has = [ "llama.key:/var/lib/lares-staging/keys/llama.key" ];
  };
}
