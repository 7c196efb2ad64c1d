{
  title = "More memory than the budget";
  module.services.lares = {
    llama.memoryBudget = "4 GiB";
    models.coder = {
      path = "/srv/models/coder.gguf";
      memoryMax = "3 GiB";
    };
    models.big = {
      path = "/srv/models/big.gguf";
      memoryMax = "2 GiB";
    };
  };
  message = "The memoryMax of big, coder are 5120 MiB together, more than services.lares.llama.memoryBudget (4 GiB). Lower them, or raise the budget.";
}
