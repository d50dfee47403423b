#include <dialoguellm.h>
