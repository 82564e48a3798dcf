//! What a netlink socket does not even receive.

use std::{io, mem::size_of_val, os::fd::AsRawFd};

use libc::{
    BPF_ABS, BPF_H, BPF_JEQ, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, sock_filter, sock_fprog,
};

/// Keeps netlink messages that were caused by one of `ports`, or are of one of `types`, from being
/// received by a socket. Of a datagram with several messages the first one decides; the kernel sends
/// each event in a datagram of its own. At most 200 ports and types altogether.
pub fn ignore_netlink(socket: &impl AsRawFd, ports: &[u32], types: &[u16]) -> io::Result<()> {
    let mut program = program(ports, types)?;
    let length = u16::try_from(program.len()).map_err(io::Error::other)?;
    let program = sock_fprog { len: length, filter: program.as_mut_ptr() };
    let size = libc::socklen_t::try_from(size_of_val(&program)).map_err(io::Error::other)?;
    // SAFETY: the kernel reads `program` and the instructions that it points to; both live through
    // the call.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const program).cast(),
            size,
        )
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Classic BPF. Loads are big endian, netlink is in the machine's order.
fn program(ports: &[u32], types: &[u16]) -> io::Result<Vec<sock_filter>> {
    /// Offsets in `struct nlmsghdr`.
    const TYPE: u32 = 4;
    const PORT: u32 = 12;
    const KEEP: u32 = u32::MAX;
    const DROP: u32 = 0;
    let instruction = |code: u32, k: u32, jump: u8| -> io::Result<sock_filter> {
        let code = u16::try_from(code).map_err(io::Error::other)?;
        Ok(sock_filter { code, jt: jump, jf: 0, k })
    };
    // From each comparison to the last instruction.
    let mut jump = u8::try_from(ports.len() + types.len() + 2).map_err(io::Error::other)?;
    let mut to_drop = |passed: u8| {
        jump -= passed;
        jump
    };
    let mut program = vec![instruction(BPF_LD | BPF_H | BPF_ABS, TYPE, 0)?];
    for kind in types {
        let wanted = u16::from_be_bytes(kind.to_ne_bytes());
        program.push(instruction(BPF_JMP | BPF_JEQ | BPF_K, wanted.into(), to_drop(1))?);
    }
    to_drop(1);
    program.push(instruction(BPF_LD | BPF_W | BPF_ABS, PORT, 0)?);
    for port in ports {
        let wanted = u32::from_be_bytes(port.to_ne_bytes());
        program.push(instruction(BPF_JMP | BPF_JEQ | BPF_K, wanted, to_drop(1))?);
    }
    program.push(instruction(BPF_RET | BPF_K, KEEP, 0)?);
    program.push(instruction(BPF_RET | BPF_K, DROP, 0)?);
    Ok(program)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a program on a message, as the kernel would.
    fn keeps(program: &[sock_filter], kind: u16, port: u32) -> bool {
        let mut message = [0; 16];
        message[4..6].copy_from_slice(&kind.to_ne_bytes());
        message[12..].copy_from_slice(&port.to_ne_bytes());
        let (mut at, mut loaded) = (0, 0);
        loop {
            let step = program[at];
            let offset = step.k as usize;
            at += 1;
            match u32::from(step.code) {
                code if code == BPF_LD | BPF_H | BPF_ABS => {
                    loaded = u16::from_be_bytes([message[offset], message[offset + 1]]).into();
                }
                code if code == BPF_LD | BPF_W | BPF_ABS => {
                    loaded = u32::from_be_bytes(message[offset..offset + 4].try_into().unwrap());
                }
                code if code == BPF_JMP | BPF_JEQ | BPF_K => {
                    at += usize::from(if loaded == step.k { step.jt } else { step.jf });
                }
                _ => return step.k != 0,
            }
        }
    }

    #[test]
    fn what_is_named_is_dropped_and_nothing_else() {
        for (ports, types) in [(&[7, 9][..], &[24, 25][..]), (&[], &[24]), (&[7], &[]), (&[], &[])]
        {
            let program = program(ports, types).unwrap();
            for kind in [0, 16, 24, 25, 26] {
                for port in [0, 7, 8, 9, 0x0700_0000] {
                    let named = ports.contains(&port) || types.contains(&kind);
                    assert_eq!(keeps(&program, kind, port), !named, "{kind} by {port}");
                }
            }
        }
        assert!(program(&[0; 300], &[]).is_err());
    }
}
