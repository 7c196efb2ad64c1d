{
  module.services.lares = {
    llama.memoryBudget = "8 GiB";
    models.coder.memoryMax = "6 GiB";
  };
  settings.llama.memory_budget = "8 GiB";
  units."lares-llama-coder.service".has = [ "MemoryMax=6" ];
}
