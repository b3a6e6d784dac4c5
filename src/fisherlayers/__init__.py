"""Fisher layers: natural gradient by reconstruction, and Deep Fisher Networks, on one core."""

from fisherlayers.information import DenseInformation as DenseInformation
from fisherlayers.information import DiagonalInformation as DiagonalInformation
from fisherlayers.information import FisherInformation as FisherInformation
from fisherlayers.information import KroneckerInformation as KroneckerInformation
from fisherlayers.inverse_root import inverse_square_root as inverse_square_root
from fisherlayers.inverse_root import low_rank_inverse_square_root as low_rank_inverse_square_root
from fisherlayers.layer import FisherLayer as FisherLayer
