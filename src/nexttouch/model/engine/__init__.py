"""The live engine's own protocol as a model: pagers, the kernel's userfaultfd, and a program that moves its memory."""
