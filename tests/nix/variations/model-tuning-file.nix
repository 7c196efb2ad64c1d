# What a tuner wrote is used where nothing is set by hand.
{
  module.services.lares.models.coder = {
    tuning = ../tuning.toml;
    slots = 2;
  };
  settings.models.coder = {
    context_size = 4096;
    micro_batch_size = 64;
    slots = 2;
  };
}
