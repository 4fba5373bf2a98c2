from .whole import check_room as check_room
from .whole import check_writable as check_writable
from .whole import clean as clean
from .whole import write_file as write_file
