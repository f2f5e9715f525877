#define WIDTH 4
#define VARIANT polybn_network_plain
#include "steps.h"
