"""`python -m nexttouch` is the command `nexttouch`."""

from .cli import main

raise SystemExit(main())
