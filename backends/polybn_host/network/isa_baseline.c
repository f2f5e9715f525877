#define WIDTH 4
#define VARIANT polybn_network_baseline
#include "steps.h"
