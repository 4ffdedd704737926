//! SNI, Host, :authority and the dialled port must agree.
